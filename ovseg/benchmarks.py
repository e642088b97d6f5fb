"""Benchmarks: pictures with label maps, class names, palettes, and mIoU.

Two forms. A folder: images/ (jpg, png, webp), labels/ (png of the same name, pixel = index into the classes, 255
ignored) and classes.txt, a name per line. Or webdataset shards whose samples hold an image and a label map.
A list of classes that begins with "background" makes a benchmark with background: it is label 0, and a picture's
pixels are background where no class scores high enough.
"""

import colorsys
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import shards

BACKGROUND = "background"
IGNORED = 255


class BenchmarkBase:
    """Iterating yields (key, PIL RGB image, (H, W) uint8 label map).

    classes: a file of names, in the order of label values. source: what tells its pictures from others'; benchmarks
    that agree on it hold the same pictures in the same order.
    """

    def __init__(self, name, classes, source):
        self.name, self.source = name, str(source)
        self.classes = [line.strip() for line in Path(classes).read_text().splitlines() if line.strip()]
        if not 2 <= len(self.classes) <= IGNORED or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"benchmark {name}: {classes} must hold 2 to {IGNORED} distinct names, a line each")

    @property
    def background(self):
        """Whether label 0 is a background."""
        return self.classes[0] == BACKGROUND

    @property
    def named(self):
        """The classes that have a text: all but the background."""
        return self.classes[1:] if self.background else self.classes

    def _checked(self, key, image, labels):
        if labels.ndim != 2:
            raise ValueError(f"benchmark {self.name}: label map {key} has shape {labels.shape}, not one index a pixel")
        if labels.shape != (image.height, image.width):
            sizes = f"image is {image.width}x{image.height}, label map {labels.shape[1]}x{labels.shape[0]}"
            raise ValueError(f"benchmark {self.name}: {key}: {sizes}")
        known = labels[labels != IGNORED]
        if known.size and known.max() >= len(self.classes):
            allowed = f"0..{len(self.classes) - 1} and {IGNORED}"
            raise ValueError(f"benchmark {self.name}: label map {key} holds {known.max()}; allowed are {allowed}")
        return key, image, labels


class FolderBenchmark(BenchmarkBase):
    """A benchmark in a folder: images/, labels/, classes.txt."""

    def __init__(self, name, folder):
        self.folder = Path(folder)
        for part in ("images", "labels", "classes.txt"):
            if not (self.folder / part).exists():
                raise FileNotFoundError(f"benchmark {name}: {self.folder / part} does not exist; expected images/, labels/ and classes.txt")
        super().__init__(name, self.folder / "classes.txt", self.folder)
        self.images = sorted(path for path in (self.folder / "images").iterdir() if path.suffix.lower()[1:] in shards.IMAGES)
        missing = [path.stem for path in self.images if not (self.folder / "labels" / f"{path.stem}.png").is_file()]
        if missing or not self.images:
            what = f"no label map labels/{missing[0]}.png" if missing else "no images in images/"
            raise FileNotFoundError(f"benchmark {name}: {what} ({self.folder})")

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        for path in self.images:
            labels = np.asarray(Image.open(self.folder / "labels" / f"{path.stem}.png"))
            yield self._checked(path.stem, Image.open(path).convert("RGB"), labels)


class ShardBenchmark(BenchmarkBase):
    """A benchmark in webdataset shards. label: the extension of a sample's label map, e.g. "seg.png"."""

    def __init__(self, name, spec, label, classes):
        super().__init__(name, classes, spec)
        self.paths, self.label = shards.expand(spec), label
        self._length = None

    def __len__(self):
        if self._length is None:
            self._length = sum(1 for path in self.paths for _ in shards.read(path))
        return self._length

    def __iter__(self):
        for path in self.paths:
            report = shards.Report()
            for sample in shards.read(path, report):
                where = f"benchmark {self.name}: sample {sample['__key__']} of {path}"
                if self.label not in sample:
                    raise ValueError(f"{where} has no {self.label}")
                labels = np.asarray(Image.open(io.BytesIO(sample[self.label])))
                try:
                    image = shards.decode_image(sample)
                except shards.BadSample as bad:
                    raise ValueError(f"{where}: {bad}") from None
                yield self._checked(sample["__key__"], image, labels)
            if report.skipped:  # a benchmark on fewer pictures would be another benchmark
                raise ValueError(f"benchmark {self.name}: {path}: {', '.join(report.skipped)}")


def open_benchmark(name, settings):
    """The benchmark that params' `benchmarks` describes under `name`. settings: params.Benchmark."""
    if settings.folder is not None:
        return FolderBenchmark(name, settings.folder)
    return ShardBenchmark(name, settings.shards, settings.label, settings.classes)


class MeanIoU:
    """IoU per class and their mean over a whole data set, from one confusion matrix; ignored pixels count nowhere."""

    def __init__(self, classes):
        self.classes = classes
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)  # rows truth, columns prediction

    def update(self, predicted, truth):
        """predicted, truth: (H, W) integer arrays or tensors; predicted < len(classes) where the truth is not ignored."""
        arrays = (labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels) for labels in (predicted, truth))
        predicted, truth = (labels.astype(np.int64) for labels in arrays)
        cells = (truth * len(self.classes) + predicted)[truth != IGNORED]
        self.matrix += np.bincount(cells, minlength=self.matrix.size).reshape(self.matrix.shape)

    def compute(self):
        """{class: IoU in percent}, None for a class that neither truth nor prediction holds."""
        found = self.matrix.diagonal()
        union = self.matrix.sum(0) + self.matrix.sum(1) - found
        return {name: (100 * found[i] / union[i]).item() if union[i] else None for i, name in enumerate(self.classes)}


def mean(iou):
    """Mean over the classes that were there; None if none was."""
    values = [value for value in iou.values() if value is not None]
    return sum(values) / len(values) if values else None


def palette(classes):
    """Colours to draw classes in, (C, 3) uint8: background black, the others evenly around the wheel in three lightnesses."""
    named = sum(name != BACKGROUND for name in classes)
    colours = [colorsys.hls_to_rgb(index / named, (0.5, 0.75, 0.32)[index % 3], 0.85) for index in range(named)]
    return (np.array([(0, 0, 0)] * (BACKGROUND in classes) + colours) * 255).astype(np.uint8)
