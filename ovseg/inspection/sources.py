"""What can be inspected: the runs of a project, and pictures of its benchmarks and training pairs. Errors are one line."""

import copy
import functools
import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .. import params
from ..benchmarks.datasets import open_benchmark
from ..benchmarks.layouts import IGNORED
from ..clip.frozen import FrozenCLIP
from ..data import preparation, shards
from ..data.images import center_crop, read_label_map
from ..segmentation.segmenter import Segmenter
from ..training.decoder import Decoder

SIZE = 320  # pixels, the longer side of a picture in a panel
NO_TRUTH = np.full((SIZE, SIZE), IGNORED, np.uint8)


class Picture:
    """A picture to inspect. image: PIL RGB. truth: (H, W) indices into classes (names), or IGNORED; of another size if nothing is known.
    caption, side (pixels in training): of a training pair, else "" and None. small: the image in the size of a panel."""

    def __init__(self, image, title, truth=NO_TRUTH, classes=(), caption="", side=None):
        self.image, self.title, self.truth, self.classes, self.caption, self.side = image, title, truth, tuple(classes), caption, side
        self.small = np.asarray(ImageOps.contain(image, (SIZE, SIZE), Image.Resampling.LANCZOS))  # (H, W, 3) uint8


def open_run(name, p, models):
    """The Segmenter of a run (its seed 0): of a folder in `models`, or of an untrained dense mode, by `clip` and `segment` of p."""
    if name not in p.ablations.untrained:
        return Segmenter.load(Path(models) / name, p.device)
    clip = FrozenCLIP.open(p.clip.model_copy(update={"dense": name}), params.device(p.device))
    return Segmenter(clip, Decoder(clip.width).to(clip.device), p.segment)


def benchmark_picture(benchmark, index):
    """Picture `index` of an opened benchmark. Shards are read from the beginning."""
    if index >= len(benchmark):
        raise ValueError(f"picture {index} of {benchmark.name}: must be between 0 and {len(benchmark) - 1}")
    few = copy.copy(benchmark)
    few.samples = functools.partial(benchmark.samples, max(1, index))  # pictures 0, index, ...: no others are decoded
    _, image, truth = next(itertools.islice(few, min(1, index), None))
    return Picture(image, f"{benchmark.name}, picture {index}", truth, benchmark.classes)


def training_pair(p, index, folder):
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
        if settings.label in sample:
            labels = Image.fromarray(read_label_map(io.BytesIO(sample[settings.label])))
            truth, classes = center_crop(labels, side, Image.Resampling.NEAREST), open_benchmark(name, settings).classes
    return Picture(Image.fromarray(center_crop(image, side)), f"training pair {index}", truth, classes, caption, side)
