"""The sections of params.yaml as types: every key, its type and its range. Only keys of a benchmark have defaults."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from .values import Count, Dense, Granularity, Index, Layout, Method, Points, Positive, Seed, Share, Template, Units, distinct

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


class Mgca(Section):
    """Multi-grained alignment (methods/mgca.py)."""

    granularity: Granularity
    alpha: Annotated[float, Field(gt=0, le=1)]
    beta: Annotated[float, Field(gt=0, le=1)]
    k: Annotated[float, Field(ge=0, le=1)]
    tau: Positive
    direction: Literal["image-to-text", "text-to-image", "both"]
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


class Mixreorg(Section):
    """Mixed patches (methods/mixreorg.py)."""

    images: Annotated[int, Field(ge=2)]
    patch: Count
    block: Index | None
    progressive: bool
    restoration: bool
    tau: Positive
    weight: Positive


class Tcl(Section):
    """Text-grounded masks (methods/tcl.py)."""

    weight: float
    bias: float
    tau: Positive
    area: Share
    image_level: bool
    contrast_weight: Annotated[float, Field(ge=0)]
    area_weight: Annotated[float, Field(ge=0)]
    variation_weight: Annotated[float, Field(ge=0)]


class Pacl(Section):
    """Patch-text compatibility (methods/pacl.py)."""

    patch_tau: Positive
    tau: Positive


class Groupvit(Section):
    """Learned groups (methods/groupvit.py)."""

    groups: Annotated[int, Field(ge=2)]
    gumbel_tau: Positive
    tau: Positive


class Supervised(Section):
    """Training on label maps (methods/supervised.py)."""

    labels: str | None
    tau: Positive


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


class Params(Section):
    """All of params.yaml."""

    device: Literal["auto", "cpu", "cuda"]
    scenes: Scenes
    data: Data
    benchmarks: Benchmarks
    clip: Clip
    pretrain: Pretrain
    mgca: Mgca
    mixreorg: Mixreorg
    tcl: Tcl
    pacl: Pacl
    groupvit: Groupvit
    supervised: Supervised
    train: Train
    segment: Segment
    evaluate: Evaluate
    ablations: Ablations
    figures: Figures

    @property
    def sections(self):
        """{method: its section} of train.method; None for a method without one."""
        return {name: getattr(self, name, None) for name in self.train.method.split("+")}

    @field_validator("train")
    @classmethod
    def _fits_its_method(cls, train, info):
        in_shards = [name for name, benchmark in info.data.get("benchmarks", {}).items() if benchmark.shards]
        labels = info.data["supervised"].labels if "supervised" in info.data else None
        if train.method == "supervised" and labels not in in_shards:
            allowed = f"allowed are benchmarks in shards, {', '.join(in_shards)}" if in_shards else "there is no benchmark in shards"
            raise ValueError(f"method = 'supervised' learns from label maps as supervised.labels = {labels!r} has them: {allowed}")
        mixed = info.data["mixreorg"].images if "mixreorg" in info.data else 1
        if "mixreorg" in train.method.split("+") and train.batch % (mixed * train.processes):
            raise ValueError(
                f"batch = {train.batch}: with mixreorg a multiple of mixreorg.images * train.processes, {mixed * train.processes}"
            )
        if "clip" in info.data and info.data["clip"].cache_images:
            for method, key in (("mixreorg", "block"), ("tcl", "image_level")):
                value = getattr(info.data.get(method), key, None)
                if method in train.method.split("+") and value is not None and value is not False:
                    raise ValueError(f"{method}.{key} = {value!r} encodes images in each step: set clip.cache_images to false")
        return train

    @field_validator("segment")
    @classmethod
    def _unit_of_its_method(cls, segment, info):
        if segment.unit == "learned-group" and "train" in info.data and "groupvit" not in info.data["train"].method.split("+"):
            raise ValueError("unit = 'learned-group' needs the groups that train.method = groupvit learns")
        return segment

    @field_validator("evaluate")
    @classmethod
    def _thresholds_of_benchmarks(cls, evaluate, info):
        unknown = set(evaluate.thresholds) - set(info.data.get("benchmarks", evaluate.thresholds))
        if unknown:
            raise ValueError(
                f"thresholds of {', '.join(sorted(unknown))}: allowed are those of benchmarks, {', '.join(info.data['benchmarks'])}"
            )
        return evaluate
