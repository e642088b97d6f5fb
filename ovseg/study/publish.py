"""Export a trained model as a folder for publishing: all seeds, its CLIP if that is a local folder, and a model card from its result."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from .. import preflight
from ..data.files import write_whole
from ..schema import LOCAL
from ..segmentation.hub import FILES, PICKLED, check_clip
from .comparison import name as method_name
from .report import mean_std

CLIP = "clip"  # subfolder of the CLIP
WORLD = """Its CLIP is a small one that was pretrained on rendered scenes of a cartoon world. It knows the 22 classes of that world
and nothing else: **it is of no use on photographs**. It is published to be inspected, and to check that a study was repeated.
"""
CARD = """---
license: {licence}
library_name: ovseg
pipeline_tag: image-segmentation
tags: [image-segmentation, open-vocabulary, zero-shot, text-supervision]
---

# {name}

Open-vocabulary semantic segmentation learned from image-text pairs alone: name any classes, get a label map. A decoder of {weights:,}
weights, trained by {method} on the dense features of a frozen CLIP, `{clip}`. No label map was seen in training.

```python
from PIL import Image
from ovseg import Segmenter

segmenter = Segmenter.from_pretrained("{where}")
found = segmenter.segment(Image.open("picture.jpg"), ["car", "tree"], background=True)
found.labels, found.names  # (H, W), indices into ("background", "car", "tree")
```

## Results

mIoU in percent, mean ± standard deviation over seeds (how many). {threshold}

{table}

## Data

{data}

## Limits

{limits}
## How it was made

{parameters}

Versions: {versions}. SHA-256 of the class names, one a line: {classes}.
"""
SUPERVISED = "No label map was seen in training."
ON_LABELS = "It was trained on label maps: a reference for what texts can teach, not a result of it."


def trained_on(counts):
    """Describe the decoder's training pairs, one line for the card. counts: results/prepare.json, or {} if it does not exist."""
    held = f"{counts['pairs']:,} image-text pairs, {counts['captions']:,} different captions" if counts else "image-text pairs"
    return f"Trained on {held}" + (": rendered scenes of a cartoon world, with noisy captions." if counts.get("rendered") else ".")


def find_result(model):
    """The result file of models/NAME: results/runs/NAME.json next to `models`. Raises FileNotFoundError if it does not exist."""
    model = Path(model)
    for above in model.absolute().parents:
        if above.name == "models":
            file = above.parent / "results/runs" / f"{model.absolute().relative_to(above)}.json"
            if file.is_file():
                return file
    raise FileNotFoundError(f"{model}: no result in results/runs, of which its model card is made: evaluate it first")


def _prepared(result):
    """The content of the results/prepare.json that belongs to a result's file; {} if it does not exist."""
    file = next(folder for folder in result.parents if folder.name == "results") / "prepare.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def write_model(model, out, where=None):
    """Export a model's folder, e.g. "models/mgca", for publishing. out: a folder that does not exist yet.

    where: the name that its card uses, "owner/name"; None: `out`. Raises FileNotFoundError if the model, its result or its CLIP does not
    exist, FileExistsError if `out` exists, ValueError if CLIP's weights are not safetensors or the result is from an earlier version.
    """
    model, out = Path(model), Path(out)
    if not (model / "segmenter.json").is_file():
        raise FileNotFoundError(f"{model} holds no segmenter.json: expected the folder of a trained model, as `make repro` writes it")
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    file, config = find_result(model), json.loads((model / "segmenter.json").read_text())
    try:
        result = json.loads(file.read_text())
        about = card(result, where or str(out), _prepared(file))
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}: evaluate the model again") from None
    files = {path: path.relative_to(model) for kind in ("*.safetensors", "training.json") for path in sorted(model.glob(f"seeds/*/{kind}"))}
    if config["clip"]["model"].startswith(LOCAL):
        clip = Path(os.path.normpath(model / config["clip"]["model"].removeprefix(LOCAL)))
        if not clip.is_dir():
            raise FileNotFoundError(f"{clip}, the CLIP of {model}, does not exist")
        if pickled := [path for path in sorted(clip.iterdir()) if path.suffix in PICKLED]:
            raise ValueError(f"{pickled[0]}: weights are published as safetensors alone")
        files |= {path: Path(CLIP) / path.name for kind in FILES for path in sorted(clip.glob(kind))}
        config["clip"]["model"] = f"{LOCAL}{CLIP}"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    for source, target in files.items():
        (part / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part / target)
    write_whole(part / "segmenter.json", lambda file: file.write_text(json.dumps(config, indent=2) + "\n"))
    write_whole(part / "README.md", lambda file: file.write_text(about, encoding="utf-8"))
    try:
        check_clip(str(model), part, config["clip"])
        part.chmod(0o755)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def card(result, where, prepared):
    """The model card, Markdown with YAML front matter.

    result: from runs.make_result. where: argument of Segmenter.from_pretrained. prepared: `counts` of `trained_on`. Raises KeyError if the
    result lacks an entry.
    """
    values = dict(result["parameters"])
    cartoon = values["clip.model"] == preflight.PRETRAINED  # its CLIP
    method, clip = values["train.method"], values["clip.model"] + (f" ({tag})" if (tag := values["clip.pretrained"]) else "")
    rows = [
        {"benchmark": name, "unit": unit, "mIoU": mean_std(pd.Series([seed["miou"][name][unit] for seed in result["seeds"]], dtype=float))}
        for name, by_unit in result["miou"].items()
        for unit in by_unit
    ]
    used = ", ".join(f"{threshold:g} on `{name}`" for name, threshold in result["thresholds"].items())
    sections = ("clip", *method.split("+"), "train", "segment")
    shown = [key for key in values if key.split(".")[0] in sections and not key.endswith("templates")]
    text = CARD.format(
        licence="mit" if cartoon and prepared.get("rendered") else "other",  # third-party CLIPs and data have their own terms
        name=where.rstrip("/").split("/")[-1],
        weights=result["weights"],
        method=method_name(method),
        clip=clip,
        where=where,
        threshold=f"Threshold of the background (softmax score): {used}." if used else "No benchmark has a background.",
        table=pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        data=trained_on(prepared),
        limits=(WORLD if cartoon else "It knows what its CLIP knows, and errs as that does; captions of the web are biased.\n"),
        parameters="\n".join(f"- `{key}`: {values[key]}" for key in shown),
        versions=", ".join(f"{package} {version}" for package, version in result["versions"]),
        classes=", ".join(f"{name} `{digest[:16]}…`" for name, digest in result["classes"]),
    )
    if method == "supervised":
        for said, instead in ((SUPERVISED, ON_LABELS), (" learned from image-text pairs alone", ""), (", text-supervision]", "]")):
            text = text.replace(said, instead)
    return text


def push(out, repository, private=False):
    """Upload a folder written by `write_model` to the Hub repository "owner/name", created if needed. Returns the URL of the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repository, folder_path=out, allow_patterns=FILES).commit_url
