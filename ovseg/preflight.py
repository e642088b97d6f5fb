"""Checks before hours of work: whether params.yaml, CLIP and this machine's GPUs fit together.

`python -m ovseg.params` runs these checks after validating the values. They load no weights, and import torch only if a value needs it.
"""

import difflib
import json
import re
import sys
from importlib import util
from pathlib import Path

from .params import ParamsError, device, processes
from .schema import LOCAL

PRETRAINED = f"{LOCAL}models/clip"  # output of `pretrain`
PREPARED = "data/prepared/"  # output of `prepare`


def check(runs):
    """Raises ParamsError, one line, for the first inconsistency. runs: {name of a run: Params}, the default run first."""
    p = next(iter(runs.values()))
    if p.device == "cuda" or p.train.processes > 1:
        processes(p.train.processes, device(p.device))
    patch = p.pretrain.patch if p.clip.model == PRETRAINED else patch_size(p.clip.model)
    check_pretrained(p.clip)
    for key, value in {"clip.image_size": p.clip.image_size, "segment.window": p.segment.window}.items():
        if value % patch:
            raise ParamsError(f"{key} = {value}: allowed are multiples of CLIP's patch, {patch}")
    vision = model_config(p.clip.model)["vision_cfg"] if p.clip.model != PRETRAINED else {"layers": p.pretrain.vision_layers}
    side = 2 * p.segment.window // patch  # pixel embeddings: the decoder doubles the grid of patches
    for name, run in runs.items():
        s, where = run.segment, f"{name}: " if name else ""
        if "meta-point" in (s.unit, *run.evaluate.units) and s.meta_points > side**2:
            raise ParamsError(f"{where}segment.meta_points = {s.meta_points}: at most {side**2}, the pixel embeddings of a window")
        methods, blocks = run.train.method.split("+"), vision.get("layers")
        if "mixreorg" in methods and blocks and (run.mixreorg.block or 0) >= blocks:
            raise ParamsError(f"{where}mixreorg.block = {run.mixreorg.block}: at most {blocks - 1}, CLIP's last block")
        if "group" in (s.unit, *run.evaluate.units) and s.groups > side**2:
            raise ParamsError(f"{where}segment.groups = {s.groups}: at most {side**2}, the pixel embeddings of a window")
    if p.data.shards is None:
        check_batches(runs, p.scenes.pairs)


def check_files(runs):
    """Check that data.shards and the benchmarks exist, that benchmark folders are complete, and that the first sample has a label map if a
    run is supervised. Raises ParamsError, one line.

    Outputs of `prepare` and missing optional benchmarks are not checked. runs: as in `check`.
    """
    p = runs[""]
    if p.data.shards is not None:
        from .data import shards  # takes a second to import

        try:
            paths = shards.expand(p.data.shards)
        except FileNotFoundError as error:
            raise ParamsError(f"data.shards: {error}") from None
        for name in (name for name, run in runs.items() if run.train.method == "supervised"):
            label = p.benchmarks[p.supervised.labels].label
            if label not in next(shards.read_samples(paths[0]), {label: None}):
                why = f"it learns from label maps, but the samples of {paths[0]} hold no {label}, that of supervised.labels"
                raise ParamsError(f"ablations.trained: {name}: {why}")
    given = {name: b for name, b in p.benchmarks.items() if not (b.folder or b.shards or "").startswith(PREPARED)}
    if given:
        from .benchmarks import datasets  # imports torch

        try:
            datasets.open_benchmarks(given)
        except (OSError, ValueError) as error:
            if not (isinstance(error, datasets.NotHere) and all(b.optional for b in given.values())):
                raise ParamsError(f"{error}") from None


def check_batches(runs, pairs):
    """Raises ParamsError if a run's batch is larger than the number of pairs. runs: as in `check`."""
    for name, run in runs.items():
        if run.train.batch > pairs:
            raise ParamsError(f"{name}: train.batch = {run.train.batch}: at most {pairs}, the number of pairs".removeprefix(": "))


def model_config(model):
    """The open_clip configuration of a model, a dict, read without importing open_clip. Raises ParamsError for an unknown name."""
    if model.startswith(LOCAL):
        file = Path(model.removeprefix(LOCAL)) / "open_clip_config.json"
        if not file.is_file():
            raise ParamsError(f"clip.model = {model!r}: {file} does not exist")
        return json.loads(file.read_text())["model_cfg"]
    files = {path.stem: path for path in _configs()}
    if model not in files:
        nearest = difflib.get_close_matches(model, files, n=1, cutoff=0)
        raise ParamsError(f"clip.model = {model!r}: open_clip has no such model; the nearest is {nearest[0]}; a folder is {LOCAL}FOLDER")
    return json.loads(files[model].read_text())


def patch_size(model):
    """The patch size of a CLIP in pixels. Raises ParamsError for a model that clip/dense.py does not support."""
    vision = model_config(model)["vision_cfg"]
    if name := vision.get("timm_model_name"):
        named = re.fullmatch(r"vit_.*_patch(\d+)_siglip.*", name)
        patch = int(named[1]) if named else None
    else:
        patch = None if vision.get("attentional_pool") else vision.get("patch_size")
    if patch is None:
        raise ParamsError(f"clip.model = {model!r}: allowed are models whose image tower is open_clip's plain ViT, or SigLIP's")
    return patch


def check_pretrained(clip):
    """Raises ParamsError unless clip.pretrained is null for a folder, and otherwise an open_clip tag of the model or the path of a file."""
    if clip.model.startswith(LOCAL):
        if clip.pretrained is not None:
            raise ParamsError(f"clip.pretrained = {clip.pretrained!r}: null goes with clip.model = {clip.model!r}, which holds its weights")
        return
    if clip.pretrained is None:
        raise ParamsError("clip.pretrained = None: allowed are a tag of open_clip and the path of a checkpoint")
    if Path(clip.pretrained).is_file():
        return
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model  # takes seconds to import

    tags = list_pretrained_tags_by_model(clip.model)
    known = get_pretrained_cfg(clip.model, clip.pretrained)
    if not known:
        raise ParamsError(f"clip.pretrained = {clip.pretrained!r}: no such file, and no tag of {clip.model}; allowed are {', '.join(tags)}")
    if known.get("quick_gelu", False) and not model_config(clip.model).get("quick_gelu", False):
        print(f"warning: {quick_gelu(clip)}", file=sys.stderr)


def quick_gelu(clip):
    """The message for a clip.model without QuickGELU whose weights were trained with it."""
    named = f"{clip.model}-quickgelu"
    advice = f"; take {named}" if any(path.stem == named for path in _configs()) else ""
    return f"clip.model = {clip.model!r} computes GELU, but the weights {clip.pretrained!r} were trained with QuickGELU{advice}"


def _configs():
    """The model configuration files of open_clip."""
    return (Path(util.find_spec("open_clip").origin).parent / "model_configs").glob("*.json")
