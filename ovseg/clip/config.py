"""What open_clip's files say of a model, read without importing open_clip, which takes seconds."""

import difflib
import json
import re
from importlib import util
from pathlib import Path

from ..schema import LOCAL

CONFIGS = Path(util.find_spec("open_clip").origin).parent / "model_configs"


def model_config(model):
    """The open_clip configuration of a model by its name or "local-dir:FOLDER": a dict, None if there is none."""
    file = Path(model.removeprefix(LOCAL)) / "open_clip_config.json" if model.startswith(LOCAL) else CONFIGS / f"{model}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        return config if "vision_cfg" in config else None
    except (OSError, ValueError, AttributeError):
        return None


def model_names():
    """The names of open_clip's models."""
    return sorted(file.stem for file in CONFIGS.glob("*.json"))


def nearest(name, known):
    """The three of the known names that are most like a name, as text."""
    by_lower = {one.lower(): one for one in known}
    return ", ".join(by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, 3, 0))


def patch_size(vision):
    """The patch size in pixels of an image tower that clip/dense.py may support, else None. vision: vision_cfg of a configuration."""
    if name := vision.get("timm_model_name"):
        siglip = re.fullmatch(r"vit_.*_patch(\d+)_siglip.*", name)
        return int(siglip[1]) if siglip else None
    return None if vision.get("attentional_pool") else vision.get("patch_size")
