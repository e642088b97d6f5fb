"""The training methods: each file that defines a class Objective. training/objectives.py describes their interface."""

import importlib
from pathlib import Path


def names():
    """Names of all methods, sorted: the files of this package that define a class Objective."""
    files = [file for folder in __path__ for file in Path(folder).glob("*.py")]
    return sorted(file.stem for file in files if "\nclass Objective(" in file.read_text(encoding="utf-8"))


def module(name):
    """The module of a method: ovseg.methods.mgca for "mgca"."""
    return importlib.import_module(f"{__name__}.{name}")
