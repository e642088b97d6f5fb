"""What `pip install -e .` installs, without the extras, is enough to segment pictures: nothing else can be imported here."""

import json
import subprocess
import sys
from importlib import metadata

import open_clip
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import save_file
from test_environment import asked_for
from tiny import ROOT, TINY, P, changed, picture

from ovseg import Segmenter
from ovseg.world import pretraining

CODE = """
import sys
from importlib.machinery import PathFinder

class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

blocked = set(sys.argv[1].split(","))
sys.meta_path[sys.meta_path.index(PathFinder)] = Core
try:
    import pandas
except ModuleNotFoundError as error:
    print(error)

from PIL import Image
from ovseg import Segmenter, cli
segmented = Segmenter.load("models/default", "cpu").segment(Image.open("a.png"), ["cat", "sofa"], background=True)
print(segmented.labels.shape, *segmented.names)
cli.main(["models"], standalone_mode=False)
for options in ("--model models/default", "--clip ViT-S-32-alt/weights.safetensors -o untrained"):
    try:
        cli.main(f"segment a.png --classes cat,sofa --background {options}".split())
    except SystemExit as done:
        assert done.code == 0
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


def test_the_core_is_enough_for_a_segmenter_and_the_command(clip, decoder, tmp_path):
    installed, needed = metadata.packages_distributions(), core() | {"ovseg"}
    blocked = {module for module, names in installed.items() if not needed & {canonicalize_name(name) for name in names}}
    of_the_study = {"dvc", "papermill", "jupyterlab", "nbformat", "nbconvert", "seaborn", "pandas", "textblob", "torchmetrics"}
    assert of_the_study | {"pytest", "hypothesis"} <= blocked and not blocked & {"torch", "numpy", "open_clip", "ovseg"}
    pretraining.save_clip(clip.clip, TINY, tmp_path / "models/clip")
    settings = P.clip.model_copy(update={"model": f"local-dir:{tmp_path / 'models/clip'}"})
    Segmenter(clip, decoder, changed()).save_settings(tmp_path / "models/default", settings)
    decoder.save(tmp_path / "models/default/seeds/0")
    Image.fromarray(picture(33, 40)).save(tmp_path / "a.png")
    save_file(open_clip.create_model("ViT-S-32-alt").state_dict(), tmp_path / "weights.safetensors")
    path = ":".join(filter(None, [str(ROOT), *sys.path[1:]]))
    env = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, ",".join(blocked)]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No module named 'pandas'\n(33, 40) background cat sofa\n") and "models/default" in done.stdout
    assert json.loads((tmp_path / "untrained/a.json").read_text())["dense"] == "sclip"
    assert set(json.loads((tmp_path / "out/a.json").read_text())["percent"]) == {"background", "cat", "sofa"}
