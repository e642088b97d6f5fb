"""What open_clip's files say of a model, read without importing open_clip, which takes seconds."""

import difflib
import json
import re
import warnings
import zipfile
from importlib import util
from pathlib import Path

from ..schema import HUB, LOCAL

CONFIGS = Path(util.find_spec("open_clip").origin).parent / "model_configs"


def model_config(model):
    """The open_clip configuration of a model by its name, "local-dir:FOLDER" or "hf-hub:OWNER/NAME": a dict, None if there is none."""
    file = Path(model.removeprefix(LOCAL)) / "open_clip_config.json" if model.startswith(LOCAL) else CONFIGS / f"{model}.json"
    try:
        if model.startswith(HUB):
            file = Path(_downloaded(model.removeprefix(HUB), "open_clip_config.json"))
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        return config if "vision_cfg" in config else None
    except (OSError, ValueError, AttributeError):
        return None


def _downloaded(repository, file):
    """The path of a file of the Hugging Face Hub, downloaded once. Raises OSError or ValueError if that fails."""
    import huggingface_hub as hf  # takes a second

    path = hf.try_to_load_from_cache(repository, file)
    return path if isinstance(path, str) else hf.hf_hub_download(repository, file)


def nearest(name, known, count=3):
    """The known names that are most like a name, as text."""
    by_lower = {one.lower(): one for one in known}
    return ", ".join(by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, count, 0))


def model_rules(model, pretrained, config):
    """(key, whether it holds, what it must be) for `model` and `pretrained` as in schema.Clip. config: from `model_config`."""
    models = sorted(file.stem for file in CONFIGS.glob("*.json"))
    hint = "" if config or model.startswith(LOCAL) else f"; the nearest are {nearest(model, models)}"
    hint = f"; there is none, or no network: `hf download {model.removeprefix(HUB)}` where there is" if model.startswith(HUB) else hint
    yield "model", config, f"a model of open_clip, or {LOCAL}FOLDER or {HUB}OWNER/NAME with open_clip_config.json{hint}"
    yield "model", (patch_size(config["vision_cfg"]) or 1) > 1, "an open_clip model with a plain ViT image encoder, or a SigLIP model"
    if model.startswith((LOCAL, HUB)):
        yield "pretrained", pretrained is None, f"null: the weights are in {model}"
    elif not (pretrained and Path(pretrained).is_file()):
        from open_clip.pretrained import list_pretrained_tags_by_model  # takes seconds

        tags = list_pretrained_tags_by_model(model)
        known = nearest(pretrained or "", tags, len(tags) or 1)  # all, the most similar first
        yield "pretrained", pretrained in tags, f"the path of a checkpoint, or a tag of {model}: {known}"


def patch_size(vision):
    """The patch size in pixels of an image tower that clip/dense.py may support, else None. vision: vision_cfg of a configuration."""
    if name := vision.get("timm_model_name"):
        siglip = re.fullmatch(r"vit_.*_patch(\d+)_siglip.*", name)
        return int(siglip[1]) if siglip else None
    return None if vision.get("attentional_pool") else vision.get("patch_size")


def check_weights(model, file):
    """Raises ValueError unless a file is a checkpoint of an open_clip model. Only names and shapes of tensors are read."""
    import open_clip  # takes seconds
    import torch
    from torch.utils.serialization import config

    try:
        with torch.device("meta"), config.patch("load.mmap", zipfile.is_zipfile(file)), warnings.catch_warnings(action="ignore"):
            open_clip.create_model(model, file, device="meta")
    except Exception as error:  # torch, open_clip and safetensors raise many kinds
        wanted = f"must be a checkpoint of {model}: tensors alone, by open_clip's names"
        raise ValueError(f"clip.pretrained = {file!r}: {wanted} ({type(error).__name__})") from None
