"""What `pip install -e .` installs, without the extras, is enough to segment pictures: nothing else can be imported here."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from test_environment import asked_for
from tiny import TINY, P, changed, picture

from ovseg import Segmenter
from ovseg.world import pretraining

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = """
import sys
from importlib.machinery import PathFinder

class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

blocked = set(sys.argv.pop(1).split(","))
sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""
COMMAND = "from ovseg import cli; cli.main()"
LIBRARY = """
import numpy as np
from PIL import Image
from ovseg import Segmenter
found = Segmenter.load("models/default", "cpu").segment(Image.open("a.png"), ["cat", "sofa"], background=True)
print(found.labels.shape, *found.names)
"""


def core():
    """Names of the core's packages, and of what these need in turn."""
    found, rest = set(), [Requirement(name) for name in asked_for()]
    while rest:
        requirement = rest.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in found:
            found.add(key)
            lines = [Requirement(line) for line in metadata.requires(requirement.name) or []]
            extras = ["", *requirement.extras]
            rest += [line for line in lines if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def blocked():
    """Top-level modules that are installed here, but not with the core."""
    installed, needed = metadata.packages_distributions(), core() | {"ovseg"}
    return {module for module, names in installed.items() if not needed & {canonicalize_name(name) for name in names}}


@pytest.fixture(scope="module")
def project(clip, decoder, tmp_path_factory):
    """A folder with a model, models/default, its CLIP in models/clip, and a picture."""
    folder = tmp_path_factory.mktemp("project")
    pretraining.save_clip(clip.clip, TINY, folder / "models/clip")
    settings = P.clip.model_copy(update={"model": f"local-dir:{folder / 'models/clip'}"})
    Segmenter(clip, decoder, changed()).save_settings(folder / "models/default", settings)
    decoder.save(folder / "models/default/seeds/0")
    Image.fromarray(picture(33, 40)).save(folder / "a.png")
    return folder


def run(folder, blocked, code, *arguments):
    command = [sys.executable, "-c", BLOCKED + code, ",".join(sorted(blocked)), *arguments]
    path = [str(ROOT), *sys.path[1:]]
    env = {"PYTHONPATH": ":".join(filter(None, path)), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)


def test_most_of_what_is_installed_is_not_of_the_core(blocked):
    of_the_study = {"dvc", "papermill", "jupyterlab", "nbformat", "nbconvert", "seaborn", "pandas", "textblob", "torchmetrics"}
    assert of_the_study | {"pytest", "hypothesis"} <= blocked and not blocked & {"torch", "numpy", "open_clip", "ovseg"}


@pytest.mark.parametrize("module", ["pandas", "ovseg.study.report"])
def test_what_is_blocked_cannot_be_imported(project, blocked, module):
    done = run(project, blocked, f"import {module}")
    assert done.returncode != 0 and "No module named" in done.stderr


def test_the_core_is_enough_for_a_segmenter(project, blocked):
    done = run(project, blocked, LIBRARY)
    assert (done.returncode, done.stdout) == (0, "(33, 40) background cat sofa\n"), done.stderr


def test_the_core_is_enough_for_the_command(project, blocked):
    done = run(project, blocked, COMMAND, "segment", "a.png", "--classes", "cat,sofa", "--background")
    assert done.returncode == 0, done.stderr
    assert set(json.loads((project / "out/a.json").read_text())["percent"]) == {"background", "cat", "sofa"}
    done = run(project, blocked, COMMAND, "models")
    assert done.returncode == 0 and "models/default" in done.stdout, done.stderr
