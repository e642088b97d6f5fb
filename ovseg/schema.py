"""The sections of params.yaml as types: every key, its type and its range. A method's section is in its file in ovseg/methods.

No value has a default here, except the keys of a benchmark: params.yaml holds all values, so that a reader finds each in one place.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LOCAL = "local-dir:"  # open_clip's prefix of a model in a folder
HUB = "hf-hub:"  # and of one on the Hugging Face Hub
PRETRAINED_CLIP = f"{LOCAL}models/clip"  # the output of the stage `pretrain`
MODES = ("clip", "maskclip", "sclip", "clearclip", "naclip", "pearl")  # of dense features (clip/attention.py)
LAYOUTS = ("voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")  # benchmarks/layouts.py
# Keys of `segment` that may differ between runs; the others are fixed when benchmark windows are encoded.
INFERENCE = ("unit", "meta_points", "groups", "affinity", "batch", "precision", "synonyms", "averaged", "scale", "threshold", "refine")


def _one_slot(template):
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise ValueError("must be a text with exactly one {} and no other braces")
    return template


def _distinct(values):
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"must hold each value once: {twice[0]} is listed twice")
    return values


def joined(names):
    """The type of a text that holds one or more of the names, in this order, joined by +."""

    def check(text):
        if not text or text != "+".join(name for name in names if name in text.split("+")):
            raise ValueError(f"must be one or more of {', '.join(names)}, in this order, joined by +")
        return text

    return Annotated[str, AfterValidator(check)]


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=64, multiple_of=64)]  # heads are 64 wide
Precision = Literal["float32", "bfloat16"]
Templates = Annotated[list[Annotated[str, AfterValidator(_one_slot)]], Field(min_length=1)]


class Section(BaseModel):
    """A section of params.yaml. Unknown keys are errors, and values are immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Rendered(Section):
    """How pictures and captions are rendered (world/scenes.py)."""

    seed: Index
    size: Annotated[int, Field(ge=32, le=1024)]
    max_things: Annotated[int, Field(ge=1, le=20)]
    omit: Share
    omit_stuff: Share
    invent: Share


class Scenes(Rendered):
    """The rendered data set: training pairs and benchmark pictures."""

    pairs: Count
    pictures: Count


class Data(Section):
    """Where image-text pairs come from (data/)."""

    shards: str | None
    max_bad_fraction: Share
    stop_nouns: list[Annotated[str, Field(pattern=r"^[^\W\d_A-Z]+$")]]  # one lower-case word each
    templates: Templates


class Benchmark(Section):
    """A benchmark: a folder, plain or in a known layout, or shards with label maps (benchmarks/datasets.py)."""

    folder: str | None = None
    layout: Literal[LAYOUTS] | None = None
    shards: str | None = None
    label: str | None = None
    classes: str | None = None
    calibration: str | None = None
    optional: bool = False


class Clip(Section):
    """The frozen CLIP (clip/frozen.py)."""

    model: str
    pretrained: str | None
    dense: Literal[MODES]
    positions: Literal["size", "scale-factor"]
    precision: Precision
    image_size: Annotated[int, Field(ge=16, le=2048)]
    batch: Count
    cache_images: bool


class Pretrain(Rendered):
    """Pretraining of the compact CLIP (world/pretraining.py)."""

    batch: Annotated[int, Field(ge=2)]
    pictures: Count
    lr: Positive
    block_lr: Positive
    weight_decay: NotNegative
    caption_probability: Share
    views: Count
    patches: Annotated[list[Count], Field(min_length=1)]
    workers: Index
    templates: Templates
    embed_dim: Count
    patch: Count
    vision_width: Width
    vision_layers: Count
    text_width: Width
    text_layers: Count
    embedding_norm: Positive


class Train(Section):
    """Training of the decoder (training/loop.py). method: names of methods, joined by +; params.py knows them."""

    method: str
    seeds: Count
    epochs: Positive
    warmup_epochs: NotNegative
    batch: Annotated[int, Field(ge=2)]
    optimizer: Literal["adam", "adamw"]
    lr: Positive
    weight_decay: NotNegative
    texts: Literal["captions", "curated"]
    caption_probability: Share
    mask_equal_texts: bool
    mask_named: bool
    outliers: Share
    precision: Precision
    checkpoint_steps: Count
    threads: Count
    workers: Index
    processes: Count
    timeout_minutes: Count


class Cocu(Section):
    """Curated texts (training/curation.py)."""

    neighbours: Count
    concepts: Count
    clusters: Count


class Segment(Section):
    """From embeddings to a label map (segmentation/)."""

    unit: Literal["pixel", "meta-point", "group", "learned-group"]
    meta_points: Count
    groups: Count
    affinity: Literal["cosine", "dot"]
    short_side: Count
    max_ratio: Annotated[float, Field(ge=1)]
    resize: Literal["bicubic", "opencv-bilinear"]
    window: Count
    stride: Count
    batch: Count
    precision: Precision
    synonyms: Literal["mean", "max"]
    averaged: Literal["cosine", "softmax"]
    scale: Positive
    threshold: Share
    refine: Literal["pamr"] | None
    templates: Templates


class Reco(Section):
    """Retrieval and co-segmentation (segmentation/reco.py)."""

    pictures: Count


class Evaluate(Section):
    """What is evaluated (benchmarks/evaluation.py)."""

    units: Annotated[list[Literal["pixel", "meta-point", "group"]], Field(min_length=1), AfterValidator(_distinct)]
    thresholds: dict[str, Share]


class Ablations(Section):
    """The runs of a study (params.load_runs)."""

    seeds: Count
    trained: Annotated[list[str], AfterValidator(_distinct)]
    inferred: Annotated[list[str], AfterValidator(_distinct)]
    untrained: Annotated[list[Literal[MODES]], AfterValidator(_distinct)]
    retrieved: Annotated[list[Literal["reco"]], AfterValidator(_distinct)]


class Figures(Section):
    """What figures.ipynb shows."""

    quantiles: Annotated[list[Share], Field(min_length=1)]
    pairs: Annotated[list[Index], Field(min_length=1)]


class Study(Section):
    """All of params.yaml but the methods' sections, which params.Params adds."""

    device: Literal["auto", "cpu", "cuda"]
    scenes: Scenes
    data: Data
    benchmarks: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], Benchmark], Field(min_length=1)]
    clip: Clip
    pretrain: Pretrain
    train: Train
    cocu: Cocu
    segment: Segment
    reco: Reco
    evaluate: Evaluate
    ablations: Ablations
    figures: Figures

    @property
    def sections(self):
        """{method: its section} of train.method."""
        return {name: getattr(self, name) for name in self.train.method.split("+")}

    @property
    def training(self):
        """{name: section} of all that a training uses: its methods, `train` and, with curated texts, `cocu`."""
        return self.sections | {"train": self.train} | ({"cocu": self.cocu} if self.train.texts == "curated" else {})
