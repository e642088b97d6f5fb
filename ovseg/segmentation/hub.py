"""Models that others published: a folder, or a repository of the Hugging Face Hub.

Such a folder is one that Segmenter.load takes, with its CLIP in it; study/publish.py writes it. Of a repository only safetensors, JSON
and texts are downloaded, so nothing is unpickled and no code runs that came with a model.
"""

import json
import os
from pathlib import Path

from ..schema import LOCAL

FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def fetch(name, revision=None):
    """The folder of a published model, checked. name: a folder, or "owner/name" on the Hub. revision: of the repository.

    Raises FileNotFoundError if there is neither, ConnectionError if the Hub cannot be reached, ValueError if the model's CLIP is not named
    or held as it may be: by open_clip's name and tag, or in a folder inside, in safetensors.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name), revision)
    file = folder / "segmenter.json"
    if not file.is_file():
        raise FileNotFoundError(f"{name} holds no segmenter.json: expected a model that `ovseg publish` wrote")
    _check_clip(name, folder, json.loads(file.read_text())["clip"])
    return folder


def _check_clip(name, folder, clip):
    model, pretrained = clip["model"], clip["pretrained"]
    if model.startswith(LOCAL):
        inside = os.path.normpath(model.removeprefix(LOCAL))
        if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
            raise ValueError(f"{name}: its CLIP is {model!r}, outside of it: allowed are folders inside; Segmenter.load opens your own")
        if pickled := sorted(path.name for path in (folder / inside).glob("*") if path.suffix in PICKLED):
            raise ValueError(f"{name}: {inside}/{pickled[0]} would be unpickled: allowed are safetensors")
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
    except (OSError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(f"{name}: no such folder, and the Hub cannot be reached: {' '.join(str(error).split())}") from None
