"""Published models: a folder, or a repository on the Hugging Face Hub.

study/publish.py writes such a folder, CLIP included, and Segmenter.load opens it. Only safetensors, JSON and text files are downloaded
from a repository, so nothing is unpickled and no code that comes with a model is run.
"""

import json
import os
from pathlib import Path

from ..schema import LOCAL

FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]
CODE = ("trust_remote_code", "auto_map", "hf_model_name")  # keys of a CLIP's JSON that would fetch a model or code
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def fetch(name, revision=None):
    """Return the folder of a published model after checking it. name: a folder, or "owner/name" on the Hub. revision: see from_pretrained.

    Raises FileNotFoundError if there is no such model, ConnectionError if it cannot be downloaded, and ValueError if its CLIP is not
    allowed. Allowed are an open_clip name and tag, or a subfolder with safetensors.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name), revision)
    file = folder / "segmenter.json"
    if not file.is_file():
        raise FileNotFoundError(f"{name} holds no segmenter.json: expected a model that `ovseg publish` wrote")
    check_clip(name, folder, json.loads(file.read_text())["clip"])
    return folder


def check_clip(name, folder, clip):
    """Raise ValueError if `fetch` does not allow a published model's CLIP. name: for messages. clip: its section of segmenter.json."""
    model, pretrained = clip["model"], clip["pretrained"]
    if model.startswith(LOCAL):
        inside = os.path.normpath(model.removeprefix(LOCAL))
        if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
            raise ValueError(f"{name}: its CLIP is {model!r}, outside of it: allowed are folders inside; Segmenter.load opens your own")
        if pickled := sorted(path.name for path in (folder / inside).glob("*") if path.suffix in PICKLED):
            raise ValueError(f"{name}: {inside}/{pickled[0]} would be unpickled: allowed are safetensors")
        for file in sorted((folder / inside).rglob("*.json")):
            if found := [word for word in CODE if word in file.read_text(encoding="utf-8", errors="replace")]:
                raise ValueError(f"{name}: {file.relative_to(folder)} holds {found[0]}: no code and no other model may come with a CLIP")
        config = folder / inside / "open_clip_config.json"
        vision = json.loads(config.read_text())["model_cfg"]["vision_cfg"] if config.is_file() else {}
        if {":", "/"} & set(str(vision.get("timm_model_name"))):
            raise ValueError(f"{name}: its CLIP's image tower is {vision['timm_model_name']!r}: allowed are timm's names")
    elif ":" in model or os.sep in model:
        raise ValueError(f"{name}: its CLIP is {model!r}: allowed are open_clip's names and {LOCAL}FOLDER")
    if pretrained is not None and (os.sep in pretrained or Path(pretrained).suffix in PICKLED):
        raise ValueError(f"{name}: its CLIP's weights are {pretrained!r}: allowed are open_clip's tags")


def _download(name, revision):
    from huggingface_hub import errors, snapshot_download  # takes a second

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        of = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(f"{name}: no such folder, and no such model on the Hub{of}") from None
    except Exception as error:  # of huggingface_hub's HTTP library, or of the disk
        what = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"{name}: no such folder, and it cannot be downloaded: {what}") from None
