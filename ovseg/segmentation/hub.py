"""Published models: a folder, or a repository on the Hugging Face Hub, with all seeds, the CLIP and a model card (card.md).
They consist of safetensors, JSON and text files: nothing is unpickled, and no code that comes with a model is run."""

import json
import os
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import huggingface_hub
import jinja2

from .. import methods
from ..schema import LOCAL, PRETRAINED_CLIP

PUBLISHED_CLIP = f"{LOCAL}clip"  # clip.model of a published model whose CLIP was a local folder
FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]
CODE = ("trust_remote_code", "auto_map", "hf_model_name")  # keys of a CLIP's JSON that would fetch a model or code
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def write_model(model, out, where=None):
    """Write a trained model's folder, e.g. "models/default", to `out`, new or empty, for Segmenter.from_pretrained. where: what
    the card gives to from_pretrained; None: `out`. Before it writes, raises FileNotFoundError if the model, its result or its CLIP
    is missing, FileExistsError if `out` holds files, and ValueError if result.json is incomplete or for check_clip's reasons."""
    model, out = Path(model), Path(out)
    config, result = read_json(model, "segmenter.json"), read_json(model, "result.json")
    try:
        card = make_card(result, str(where or out))
    except (KeyError, jinja2.UndefinedError) as error:
        raise ValueError(f"{model}/result.json is incomplete ({error}): evaluate the model again") from None
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists already and is not empty")
    files = {path: path.relative_to(model) for kind in ("*.safetensors", "training.json") for path in sorted(model.glob(f"seeds/*/{kind}"))}
    clip = Path(os.path.normpath(model / config["clip"]["model"].removeprefix(LOCAL)))
    if config["clip"]["model"].startswith(LOCAL):
        files |= {path: Path("clip") / path.name for kind in FILES for path in sorted(clip.glob(kind))}
        config["clip"]["model"] = PUBLISHED_CLIP
    check_clip(model, config["clip"], clip)
    for source, target in files.items():
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / target)
    (out / "segmenter.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "config.json").write_text('{"architectures": ["ovseg.Segmenter"]}\n', encoding="utf-8")  # the Hub counts its downloads
    (out / "README.md").write_text(card, encoding="utf-8")


def push(out, repository, private=False):
    """Upload a folder written by `write_model` to the Hub repository "owner/name", created if needed. Returns the URL of the commit."""
    api = huggingface_hub.HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repository, folder_path=out, allow_patterns=FILES).commit_url


def fetch(name, **options):
    """The folder of a published model, checked. name: a folder, or "owner/name" on the Hugging Face Hub, which is downloaded. options:
    of snapshot_download, e.g. revision, token. Raises FileNotFoundError if there is no such model, and the errors of check_clip."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=FILES, **options))
        except (OSError, ValueError) as error:  # of the network, of the Hub, of a name that cannot be one of its
            raise FileNotFoundError(f"{name}: no such folder, and no download from the Hub: {' '.join(str(error).split())}") from None
    check_clip(name, read_json(folder, "segmenter.json")["clip"], folder / "clip")
    return folder


def check_clip(name, clip, folder):
    """Raise ValueError unless a published CLIP is a name and tag of open_clip, or a folder of safetensors without code; FileNotFoundError
    if the folder is missing. name: of the model. clip: section of segmenter.json. folder: of a local CLIP."""
    model, tag = clip["model"], clip["pretrained"] or ""
    if model != PUBLISHED_CLIP and {":", "/", os.sep} & set(model):
        raise ValueError(f"{name}: its CLIP is {model!r}: must be a name of open_clip or {PUBLISHED_CLIP}")
    if "/" in tag or Path(tag).suffix in PICKLED:
        raise ValueError(f"{name}: the weights of its CLIP are {tag!r}: must be a tag of open_clip")
    if model == PUBLISHED_CLIP and not folder.is_dir():
        raise FileNotFoundError(f"{folder}, the CLIP of {name}, does not exist")
    for file in sorted(folder.rglob("*")) if model == PUBLISHED_CLIP else ():
        if file.suffix in PICKLED:
            raise ValueError(f"{name}: {file.name} would be unpickled: the weights of a CLIP must be safetensors")
        text = json.dumps(json.loads(file.read_bytes())) if file.suffix == ".json" else ""  # without escapes that hide a key
        if code := [key for key in CODE if key in text] or re.findall(r'"timm_model_name":\s*"[^"]*[:/][^"]*"', text):
            raise ValueError(f"{name}: {file.name} holds {code[0]}: a CLIP must fetch no code and no other model")


def read_json(folder, name):
    """The content of a model folder's segmenter.json or result.json. Raises FileNotFoundError with the folder."""
    file = Path(folder) / name
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}: must be a trained model (`make quick`: quick/models/default), or use --clip")
    return json.loads(file.read_text(encoding="utf-8"))


def make_card(result, where):
    """The model card, Markdown with YAML front matter. result: content of result.json. where: argument of Segmenter.from_pretrained."""
    values = dict(result["parameters"])
    used = values["train.method"].split("+")
    titles = [methods.module(method).TITLE for method in used]
    facts = {"where": where, "values": values, "methods": used, "titles": titles, "cartoon": values["clip.model"] == PRETRAINED_CLIP}
    facts |= {"miou_of": lambda name, unit: [seed["miou"][name][unit] for seed in result["seeds"]], "mean": mean, "stdev": stdev}
    card = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return jinja2.Template(card, trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined).render(result | facts)
