"""What open_clip's files say of a model, read without importing open_clip, which takes seconds."""

import difflib
import json
import re
from importlib import util
from pathlib import Path

from ..schema import LOCAL

CONFIGS = Path(util.find_spec("open_clip").origin).parent / "model_configs"


def model_config(model):
    """The open_clip configuration of a model by its name or "local-dir:FOLDER": a dict, None if there is no such model."""
    if model.startswith(LOCAL):
        file = Path(model.removeprefix(LOCAL)) / "open_clip_config.json"
        return json.loads(file.read_text())["model_cfg"] if file.is_file() else None
    file = CONFIGS / f"{model}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def nearest_model(name):
    """The name of open_clip's models that is most like a wrong one."""
    return difflib.get_close_matches(name, (path.stem for path in CONFIGS.glob("*.json")), n=1, cutoff=0)[0]


def patch_size(vision):
    """The patch size in pixels of an image tower that clip/dense.py supports, else None. vision: vision_cfg of a configuration."""
    if name := vision.get("timm_model_name"):
        siglip = re.fullmatch(r"vit_.*_patch(\d+)_siglip.*", name)
        return int(siglip[1]) if siglip else None
    return None if vision.get("attentional_pool") else vision.get("patch_size")


def pretrained_tags(model):
    """The tags of a model's published weights, a list."""
    from open_clip.pretrained import list_pretrained_tags_by_model  # takes seconds

    return list_pretrained_tags_by_model(model)
