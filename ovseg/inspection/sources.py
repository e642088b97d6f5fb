"""What can be inspected: the runs of a project, and pictures of its benchmarks and training pairs. Errors are one line."""

import copy
import io
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .. import params
from ..benchmarks.datasets import open_benchmark
from ..benchmarks.layouts import IGNORED
from ..clip.frozen import FrozenCLIP
from ..data import preparation, shards
from ..data.images import center_crop, read_label_map
from ..training.decoder import Decoder
from ..segmentation.segmenter import Segmenter

NO_TRUTH = np.full((320, 320), IGNORED, np.uint8)


@dataclass(frozen=True, eq=False)
class Picture:
    """image: PIL RGB. title: its name. caption: of a training pair, else "". side: pixels, the training size of a training pair, else None.

    truth: (H, W) indices into classes, or IGNORED; NO_TRUTH, of another size, if nothing is known. classes: names.
    """

    image: Image.Image
    title: str
    caption: str = ""
    truth: np.ndarray = field(default_factory=lambda: NO_TRUTH)
    classes: tuple[str, ...] = ()
    side: int | None = None


def run_names(p, models="models"):
    """Names of runs: folders in `models` with a segmenter.json, then the dense modes of ablations.untrained. p: Params."""
    return [*sorted(path.parent.name for path in Path(models).glob("*/segmenter.json")), *p.ablations.untrained]


def open_run(name, p, models="models"):
    """The Segmenter of a run (its seed 0). name: from `run_names`. Untrained runs use `clip` and `segment` of p."""
    if name not in p.ablations.untrained:
        return Segmenter.load(Path(models) / name, p.device)
    clip = FrozenCLIP.open(p.clip.model_copy(update={"dense": name}), params.device(p.device))
    return Segmenter(clip, Decoder(clip.width).to(clip.device), p.segment)


def benchmark_picture(benchmark, index):
    """Picture `index` of an opened benchmark. Shards are read from the beginning."""
    if index >= len(benchmark):
        raise ValueError(f"picture {index} of {benchmark.name}: must be between 0 and {len(benchmark) - 1}")
    title, one = f"{benchmark.name}, picture {index}", copy.copy(benchmark)
    if benchmark.label_files:  # files: only this one is opened
        one.keys, one.files, one.label_files = ([of_all[index]] for of_all in (benchmark.keys, benchmark.files, benchmark.label_files))
        index = 0
    _, image, truth = next(itertools.islice(one, index, None))
    return Picture(image, title, "", truth, tuple(benchmark.classes))


def training_pair(p, index, folder="data/prepared"):
    """Training pair `index`, cropped as in training. p: Params. Its truth: the last benchmark's label map in its sample, if any."""
    keys = preparation.load_keys(folder)
    if index >= len(keys):
        raise ValueError(f"training pair {index}: must be between 0 and {len(keys) - 1}")
    shard, key = keys[index].split("/", 1)
    path = next(path for path in preparation.load_paths(folder) if Path(path).stem == shard)
    sample = next((sample for sample in shards.read_samples(path) if sample["__key__"] == key), None)
    if sample is None:
        raise ValueError(f"{keys[index]} is not in {path}: the shards have changed since `prepare`; run it again")
    image, caption = shards.decode(sample)
    side, truth, classes = p.clip.image_size, NO_TRUTH, ()
    for name, settings in p.benchmarks.items():  # samples of the rendered world hold the label maps of its benchmarks
        if settings.label and settings.label in sample:
            labels = Image.fromarray(read_label_map(io.BytesIO(sample[settings.label])))
            truth, classes = center_crop(labels, side, Image.Resampling.NEAREST), tuple(open_benchmark(name, settings).classes)
    return Picture(Image.fromarray(center_crop(image, side)), f"training pair {index}", caption, truth, classes, side)
