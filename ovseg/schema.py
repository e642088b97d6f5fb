"""The sections of params.yaml as types: every key, its type and its range. Only keys of a benchmark have defaults."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from .values import Count, Dense, Index, Layout, Method, Points, Positive, Seed, Share, Template, Units, distinct

LOCAL = "local-dir:"  # open_clip's prefix of a model in a folder


class Section(BaseModel):
    """A section of params.yaml. Unknown keys are errors, and values are immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Rendered(Section):
    """How pictures and captions are rendered (world/scenes.py)."""

    seed: Seed
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
    """Where image-text pairs come from (shards.py, captions.py)."""

    shards: str | None
    max_bad_fraction: Share
    templates: Annotated[list[Template], Field(min_length=1)]


class Benchmark(Section):
    """One benchmark: a folder, plain or in a known layout, or shards with label maps (benchmarks/datasets.py, layouts.py)."""

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
    """The frozen CLIP (clip/frozen.py)."""

    model: str
    pretrained: str | None
    dense: Dense
    positions: Literal["size", "scale-factor"]
    precision: Literal["float32", "bfloat16"]
    image_size: Annotated[int, Field(ge=16, le=2048)]
    batch: Count
    cache_images: bool


class Phase(Section):
    """A phase of pretraining: the number of pictures, and the numbers of visible patches per picture, one drawn for each batch."""

    pictures: Count
    patches: Annotated[list[Count], Field(min_length=1)]


class Pretrain(Rendered):
    """Pretraining of the compact CLIP (pretraining.py)."""

    batch: Annotated[int, Field(ge=2)]
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    caption_probability: Share
    views: Count
    workers: Annotated[int, Field(ge=0)]
    templates: Annotated[list[Template], Field(min_length=1)]
    embed_dim: Count
    patch: Count
    phases: Annotated[list[Phase], Field(min_length=1)]
    vision_width: Annotated[int, Field(ge=64, multiple_of=64)]
    vision_layers: Count
    text_width: Annotated[int, Field(ge=64, multiple_of=64)]
    text_layers: Count
    embedding_norm: Positive

    @field_validator("phases")
    @classmethod
    def _of_the_picture(cls, phases, info):
        if "size" in info.data and "patch" in info.data:
            patches = (info.data["size"] // info.data["patch"]) ** 2
            if any(seen > patches for phase in phases for seen in phase.patches):
                raise ValueError(f"phases see at most the {patches} patches of a picture")
        return phases


class Train(Section):
    """Training of the decoder (training.py)."""

    method: Method
    seeds: Count
    epochs: Positive
    warmup_epochs: Annotated[float, Field(ge=0)]
    batch: Annotated[int, Field(ge=2)]
    optimizer: Literal["adam", "adamw"]
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    caption_probability: Share
    mask_equal_texts: bool
    precision: Literal["float32", "bfloat16"]
    checkpoint_steps: Count
    threads: Count
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

    unit: Literal["pixel", "meta-point", "group", "learned-group"]
    meta_points: Points
    groups: Count
    affinity: Literal["cosine", "dot"]
    short_side: Count
    max_ratio: Annotated[float, Field(ge=1)]
    resize: Literal["bicubic", "opencv-bilinear"]
    window: Count
    stride: Count
    batch: Count
    precision: Literal["float32", "bfloat16"]
    averaged: Literal["cosine", "softmax"]
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


class Ablations(Section):
    """The runs of a study besides the default run (study/runs.py); params.load_runs() checks each line."""

    trained: list[str]
    inferred: list[str]
    untrained: Annotated[list[Dense], AfterValidator(distinct)]


class Figures(Section):
    """What the figures show (figures.py)."""

    quantiles: Annotated[list[Share], Field(min_length=1)]
    pairs: Annotated[list[Index], Field(min_length=1)]
