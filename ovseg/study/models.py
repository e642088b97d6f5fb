"""Trained models: their folders and what is known about each. Has no slow imports."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..schema import LOCAL


@dataclass(frozen=True)
class Model:
    """A trained model. folder: argument of Segmenter.load. seeds: of its trainings. clip: the name and dense mode of its CLIP.
    miou: {benchmark: percent}, mean over seeds with its own unit; empty if it was not evaluated."""

    folder: Path
    seeds: list[int]
    clip: str
    miou: dict[str, float]


def trained(folder):
    """List the models in a folder, at any depth: a list of Model, best mean over benchmarks first, unevaluated ones last.

    folder: e.g. "models"; the result of models/NAME is read from results/runs/NAME.json next to it. Raises FileNotFoundError if the folder
    does not exist or holds no model, and ValueError that names an unreadable file.
    """
    folder = Path(folder)
    files = [Path(path) / "segmenter.json" for path, _, names in os.walk(folder, followlinks=True) if "segmenter.json" in names]
    if not files:
        raise FileNotFoundError(f"{folder}: no trained models here; `make repro` trains them")
    models = [_model(file.parent, folder) for file in sorted(files)]
    return sorted(models, key=lambda model: -sum(model.miou.values()) / max(1, len(model.miou)))


def _model(path, folder):
    try:
        return _described(path, folder)
    except KeyError as error:
        raise ValueError(f"{path}: its segmenter.json or its result lacks {error}") from None


def _described(path, folder):
    settings = _read(path / "segmenter.json")
    result = folder.parent / "results/runs" / f"{path.relative_to(folder)}.json"
    unit, miou = settings["segment"]["unit"], _read(result)["miou"] if result.is_file() else {}
    name = settings["clip"]["model"]
    if name.startswith(LOCAL):
        name = os.path.normpath(path / name.removeprefix(LOCAL))
    elif settings["clip"]["pretrained"]:
        name += f" ({settings['clip']['pretrained']})"
    seeds = sorted(int(file.parent.name) for file in path.glob("seeds/*/decoder.safetensors"))
    own = {benchmark: by_unit[unit] for benchmark, by_unit in miou.items() if unit in by_unit}
    return Model(path, seeds, f"{name}, {settings['clip']['dense']}", own)


def _read(file):
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
