"""Models that others published: a folder, or a repository of the Hugging Face Hub.

Such a folder is one that Segmenter.load takes, with its CLIP in it; study/publish.py writes it. Of a repository only safetensors, JSON
and texts are downloaded, so nothing is unpickled and no code runs that came with a model.
"""

import json
import os
from pathlib import Path

from ..schema import LOCAL

FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]
CODE = ("trust_remote_code", "auto_map", "hf_model_name")  # in a CLIP's JSON: would fetch a model or code from elsewhere
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def fetch(name, revision=None):
    """The folder of a published model, checked. name: a folder, or "owner/name" on the Hub. revision: of the repository.

    Raises FileNotFoundError if there is neither, ConnectionError if it cannot be downloaded, ValueError if the model's CLIP is not named
    or held as it may be: by open_clip's name and tag, or in a folder inside, in safetensors.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name), revision)
    file = folder / "segmenter.json"
    if not file.is_file():
        raise FileNotFoundError(f"{name} holds no segmenter.json: expected a model that `ovseg publish` wrote")
    check_clip(name, folder, json.loads(file.read_text())["clip"])
    return folder


def check_clip(name, folder, clip):
    """That a published model's CLIP is as `fetch` allows. name: for messages. clip: its part of segmenter.json. Raises ValueError."""
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
    except Exception as error:  # those of huggingface_hub's HTTP library, and of the disk
        what = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"{name}: no such folder, and it cannot be downloaded: {what}") from None
