"""The training methods. A file that defines a class Objective is a method: mgca.py (with mining.py), mixreorg.py, tcl.py, pacl.py,
groupvit.py, and supervised.py, the reference that is trained on label maps. The interface is described in training/objectives.py.
"""

from pathlib import Path


def names():
    """Names of all methods, sorted: the files of this package that define a class Objective."""
    files = [file for folder in __path__ for file in Path(folder).glob("*.py")]
    return sorted(file.stem for file in files if "\nclass Objective(" in file.read_text(encoding="utf-8"))
