"""Typed, validated parameters; the only reader of params.yaml.

`python -m ovseg.params` checks params.yaml and says in one line what is wrong. Values never have a default here:
params.yaml holds every one of them, so that a reader finds each in one place.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

LEVELS = ("object", "region", "pixel")  # of alignment
Dense = Literal["clip", "maskclip", "sclip", "clearclip"]  # dense.DENSE_MODES, which takes seconds to import
Layout = Literal["voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k"]  # layouts.LAYOUTS

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0)]


def _one_slot(template):
    if template.count("{}") != 1 or template.replace("{}", "").count("{") + template.replace("{}", "").count("}"):
        raise ValueError("a text with exactly one {} and no other braces")
    return template


def _square(points):
    if points < 1 or round(points**0.5) ** 2 != points:
        raise ValueError("a square number: meta-points lie on a square grid")
    return points


def _plain(value):
    if "e" in str(value):  # it is part of names, and papermill reads 5e-05 as a text
        raise ValueError("write it without an exponent: at least 0.0001")
    return value


def _distinct(values):
    if len(set(values)) < len(values):
        raise ValueError("each value once")
    return values


def _levels(granularity):
    levels = granularity.split("+")
    if not granularity or granularity != "+".join(level for level in LEVELS if level in levels):
        raise ValueError(f"one or more of {', '.join(LEVELS)}, in this order, joined by +")
    return granularity


Granularity = Annotated[str, AfterValidator(_levels)]
Template = Annotated[str, AfterValidator(_one_slot)]
Points = Annotated[int, AfterValidator(_square)]
Seeds = Annotated[list[Seed], AfterValidator(_distinct)]
Units = Annotated[list[Literal["pixel", "meta-point", "group"]], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Scenes(Section):
    """The rendered world (scenes.py)."""

    seed: Seed
    pairs: Count
    pictures: Count
    size: Annotated[int, Field(ge=32, le=1024)]
    max_things: Annotated[int, Field(ge=1, le=20)]
    omit: Share
    omit_stuff: Share
    invent: Share


class Data(Section):
    """Where image-text pairs come from (shards.py, captions.py)."""

    shards: str | None
    max_bad_fraction: Share
    templates: Annotated[list[Template], Field(min_length=1)]


class Benchmark(Section):
    """One benchmark: a folder, plain or in a layout, or shards with label maps (benchmarks.py, layouts.py)."""

    folder: str | None = None
    layout: Layout | None = None
    shards: str | None = None
    label: str | None = None
    classes: str | None = None
    calibration: str | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _one_kind(self):
        from_shards = (self.shards, self.label, self.classes)
        if self.layout is not None and (self.folder is None or any(from_shards)):
            raise ValueError("layout goes with folder, the root of its files, and not with shards, label and classes")
        if self.folder is None and None in from_shards:
            raise ValueError("either folder, or all of shards, label and classes")
        if self.folder is not None and any(from_shards):
            raise ValueError("either folder, or shards, label and classes, not both")
        return self

    @model_validator(mode="after")
    def _calibrates_on_other_pictures(self):
        if self.layout is not None and self.calibration is not None:
            raise ValueError("calibration goes without layout, whose training split is used")
        if self.calibration is not None and self.calibration == (self.folder or self.shards):
            raise ValueError("calibration should be other pictures than those evaluated")
        return self


def _layout_of_its_name(benchmarks):
    for name, benchmark in benchmarks.items():
        if name in get_args(Layout) and benchmark.layout != name:
            raise ValueError(f"{name} is a benchmark of the paper and needs layout: {name}; give other pictures another name")
    return benchmarks


BenchmarkName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
Benchmarks = Annotated[dict[BenchmarkName, Benchmark], Field(min_length=1), AfterValidator(_layout_of_its_name)]


class Clip(Section):
    """The frozen CLIP (clip.py)."""

    model: str
    pretrained: str | None
    dense: Dense
    precision: Literal["float32", "bfloat16"]
    image_size: Annotated[int, Field(ge=16, le=2048)]
    batch: Count
    cache_images: bool


class Pretrain(Section):
    """Pretraining of the compact CLIP (pretraining.py)."""

    seed: Seed
    pairs: Count
    batch: Annotated[int, Field(ge=2)]
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    caption_probability: Share
    patch_dropout: Annotated[float, Field(ge=0, lt=1)]
    workers: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=32, le=1024)]
    max_things: Annotated[int, Field(ge=1, le=20)]
    omit: Share
    omit_stuff: Share
    invent: Share
    templates: Annotated[list[Template], Field(min_length=1)]
    embed_dim: Count
    patch: Count
    vision_width: Annotated[int, Field(ge=64, multiple_of=64)]
    vision_layers: Count
    text_width: Annotated[int, Field(ge=64, multiple_of=64)]
    text_layers: Count
    embedding_norm: Positive


class Mgca(Section):
    """Multi-grained alignment (alignment.py)."""

    granularity: Granularity
    alpha: Annotated[float, Field(gt=0, le=1)]
    beta: Annotated[float, Field(gt=0, le=1)]
    k: Annotated[float, Field(ge=0, le=1)]
    tau: Positive
    direction: Literal["image-to-text", "text-to-image", "both"]
    mask_equal_texts: bool
    selection: Literal["float32", "bfloat16"]

    @property
    def levels(self):
        """The levels of the granularity, e.g. ("object", "region")."""
        return tuple(self.granularity.split("+"))

    @field_validator("k")
    @classmethod
    def _semi_hard(cls, k, info):
        if k > info.data.get("alpha", 1):
            raise ValueError(f"at most alpha, {info.data['alpha']}: a positive pixel lies in the object")
        return k


class Train(Section):
    """Training of the decoder (training.py)."""

    seed: Seed
    epochs: Positive
    warmup_epochs: Annotated[float, Field(ge=0)]
    batch: Annotated[int, Field(ge=2)]
    optimizer: Literal["adam", "adamw"]
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    caption_probability: Share
    precision: Literal["float32", "bfloat16"]
    checkpoint_steps: Count
    workers: Annotated[int, Field(ge=0)]
    processes: Count

    @field_validator("processes")
    @classmethod
    def _divides(cls, processes, info):
        if info.data.get("batch", 0) % processes:
            raise ValueError(f"a divisor of train.batch, {info.data['batch']}")
        return processes

    @field_validator("warmup_epochs")
    @classmethod
    def _warm(cls, warmup, info):
        if warmup >= info.data.get("epochs", float("inf")):
            raise ValueError(f"below train.epochs, {info.data['epochs']}")
        return warmup


class Segment(Section):
    """From embeddings to a label map (units.py, segmenter.py)."""

    unit: Literal["pixel", "meta-point", "group"]
    meta_points: Points
    groups: Count
    affinity: Literal["cosine", "dot"]
    short_side: Count
    window: Count
    stride: Count
    batch: Count
    precision: Literal["float32", "bfloat16"]
    scale: Positive
    threshold: Share
    templates: Annotated[list[Template], Field(min_length=1)]

    @field_validator("stride")
    @classmethod
    def _covers(cls, stride, info):
        if stride > info.data.get("window", float("inf")):
            raise ValueError(f"at most segment.window, {info.data['window']}: a larger stride leaves pixels out")
        return stride


class Evaluate(Section):
    """What is evaluated (evaluation.py)."""

    units: Units
    thresholds: dict[str, Share]


class HeadlineSeeds(Section):
    """Repeats of the study's own run."""

    seeds: Annotated[Seeds, Field(min_length=1)]


class GranularityAblation(Section):
    """Runs on some of the levels."""

    values: Annotated[list[Granularity], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[Seeds, Field(min_length=1)]


class ShareAblation(Section):
    """Runs at other shares of the pixels (alpha, k)."""

    values: Annotated[list[Annotated[int | float, Field(ge=0, le=1), AfterValidator(_plain)]], AfterValidator(_distinct)]
    seeds: Seeds


class BetaAblation(ShareAblation):
    """Runs at other values of beta, on other levels too."""

    granularity: Annotated[list[Granularity], AfterValidator(_distinct)]


class Ablations(Section):
    """What else is trained and evaluated (ablations.py)."""

    dense: Annotated[list[Dense], AfterValidator(_distinct)]
    headline: HeadlineSeeds
    granularity: GranularityAblation
    alpha: ShareAblation
    beta: BetaAblation
    k: ShareAblation
    meta_points: Annotated[list[Points], AfterValidator(_distinct)]


class Figures(Section):
    """What the figures show (figures.py)."""

    pictures: Annotated[list[Index], Field(min_length=1)]
    pairs: Annotated[list[Index], Field(min_length=1)]


class Params(Section):
    """All of params.yaml."""

    device: Literal["auto", "cpu", "cuda"]
    scenes: Scenes
    data: Data
    benchmarks: Benchmarks
    clip: Clip
    pretrain: Pretrain
    mgca: Mgca
    train: Train
    segment: Segment
    evaluate: Evaluate
    ablations: Ablations
    figures: Figures

    @field_validator("evaluate")
    @classmethod
    def _thresholds_of_benchmarks(cls, evaluate, info):
        unknown = set(evaluate.thresholds) - set(info.data.get("benchmarks", evaluate.thresholds))
        if unknown:
            raise ValueError(
                f"thresholds of {', '.join(sorted(unknown))}: allowed are those of benchmarks, {', '.join(info.data['benchmarks'])}"
            )
        return evaluate


class ParamsError(ValueError):
    """params.yaml, or a change to it, does not hold; the message is one line."""


def root():
    """The project's folder: the nearest one at or above the working directory that holds params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise ParamsError(f"no params.yaml in {here} or above it: start from the project's folder")


def enter_project():
    """Make the project's folder the working directory: JupyterLab starts a notebook in its own folder."""
    os.chdir(root())


def load(changes=None, path="params.yaml"):
    """Read and validate params.yaml. Returns Params; raises ParamsError.

    changes: {"mgca.k": 0.1, ...}, values that replace those of the file in this run: what papermill injects.
    """
    try:
        values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))  # YAML 1.2, as DVC: 1e-3 is a number
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} holds no sections: expected {', '.join(Params.model_fields)}")
    for key, value in (changes or {}).items():
        *above, last = key.split(".")
        section = values
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ParamsError(f"{key} = {value!r}: no such key in {path}")
        section[last] = value
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError("; ".join(_line(e, path) for e in error.errors())) from None
    if not changes:
        _check_ablations(params, path)
    return params


def _check_ablations(p, path):
    """That each run of the ablations is valid with what it leaves as it is; not asked of a run that changes something itself."""
    lists = p.ablations
    rules = [
        ("alpha", v, v >= p.mgca.k and v > 0, f"mgca.k, {p.mgca.k}, to 1: a positive pixel lies in the object") for v in lists.alpha.values
    ]
    rules += [("k", v, v <= p.mgca.alpha, f"0 to mgca.alpha, {p.mgca.alpha}: a positive pixel lies in the object") for v in lists.k.values]
    rules += [("beta", v, v > 0, "shares above 0") for v in lists.beta.values]
    if p.clip.dense not in lists.dense:
        raise ParamsError(f"{path}: ablations.dense = {lists.dense}: must hold clip.dense, {p.clip.dense}: untrained, it is the baseline")
    for name, value, holds, allowed in rules:
        if not holds:
            raise ParamsError(f"{path}: ablations.{name}.values: {value}: allowed are {allowed}")


def flatten(sections):
    """Sections as a list of {"name": "section.key", "value": ...}, for results. sections: {name: Section}."""
    return [{"name": f"{name}.{key}", "value": value} for name, section in sections.items() for key, value in section.model_dump().items()]


def _line(error, path):
    """One pydantic error as `key = value: what is allowed`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = Params
        for part in error["loc"][:-1]:
            annotation = section.model_fields[part].annotation
            section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else Benchmark
            if section is Benchmark:
                break
        return f"{path}: {key} = {error['input']!r}: unknown key; allowed here: {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{path}: {key}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{path}: {key}{value}: {message}"


def device(name):
    """The torch device that params' `device` names: auto is a GPU if there is one."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("device = 'cuda': this machine has no GPU that torch can use; allowed here: auto, cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def processes(count, device):
    """Raises ParamsError if this machine has fewer GPUs than `count` processes, should they train on GPUs. device: torch.device."""
    import torch

    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ParamsError(f"train.processes = {count}: allowed are 1..{torch.cuda.device_count()}, the GPUs of this machine")


if __name__ == "__main__":
    try:
        enter_project()
        loaded = load()
        if loaded.train.processes > 1:  # fails here rather than hours later, in `train`
            processes(loaded.train.processes, device(loaded.device))
    except ParamsError as error:
        sys.exit(f"{error}")
