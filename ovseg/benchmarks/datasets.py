"""Benchmarks: pictures with label maps, class names, palettes, and mIoU.

Three forms. A folder: images/ (jpg, png, webp), labels/ (png of the same name, pixel = index into the classes, 255
ignored) and classes.txt, a name per line. Webdataset shards whose samples hold an image and a label map. Or one of the
paper's benchmarks as MMSegmentation lays it out (layouts.py).
A list of classes that begins with "background" makes a benchmark with background: it is label 0, and a picture's
pixels are background where no class scores high enough.
"""

import colorsys
import hashlib
import io
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import shards
from .layouts import CLASSES, IGNORED, LAYOUTS

BACKGROUND = "background"


class NotHere(FileNotFoundError):
    """A benchmark whose folder, or folder of label maps, or shards are not on this machine at all."""


class BenchmarkBase:
    """Iterating yields (key, PIL RGB image, (H, W) uint8 label map).

    classes: a file of names, in the order of label values. source: what tells its pictures from others'; benchmarks
    that agree on it hold the same pictures in the same order. Subclasses set files and label_files: the paths that hold its
    pictures and its label maps.
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

    @property
    def fingerprint(self):
        """What changes when a picture or a label map comes, goes or is replaced, the same on every machine.

        Of the names and sizes of pictures, and of the contents of label maps or, where these are inside, of shards.
        """
        listing = [(path.name, path.stat().st_size) for path in map(Path, self.files)]
        contents = [zlib.crc32(Path(path).read_bytes()) for path in self.label_files or self.files]
        return hashlib.sha256(json.dumps([self.classes, listing, contents]).encode()).hexdigest()

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
        for part, missing in {"": NotHere, "labels": NotHere, "images": FileNotFoundError, "classes.txt": FileNotFoundError}.items():
            if not (self.folder / part).exists():
                raise missing(f"benchmark {name}: {self.folder / part} does not exist; expected images/, labels/ and classes.txt")
        super().__init__(name, self.folder / "classes.txt", self.folder)
        self.files = sorted(path for path in (self.folder / "images").iterdir() if path.suffix.lower()[1:] in shards.IMAGES)
        self.label_files = [self.folder / "labels" / f"{path.stem}.png" for path in self.files]
        missing = [path.stem for path in self.label_files if not path.is_file()]
        if missing or not self.files:
            what = f"no label map labels/{missing[0]}.png" if missing else "no images in images/"
            raise FileNotFoundError(f"benchmark {name}: {what} ({self.folder})")

    def __len__(self):
        return len(self.files)

    def __iter__(self):
        for path, labels in zip(self.files, self.label_files, strict=True):
            yield self._checked(path.stem, Image.open(path).convert("RGB"), np.asarray(Image.open(labels)))


class ShardBenchmark(BenchmarkBase):
    """A benchmark in webdataset shards. label: the extension of a sample's label map, e.g. "seg.png"."""

    def __init__(self, name, spec, label, classes):
        try:
            self.files = shards.expand(spec)
        except FileNotFoundError as error:
            raise NotHere(f"benchmark {name}: {error}") from None
        super().__init__(name, classes, spec)
        self.label, self.label_files = label, []  # which are in the shards
        self._length = None

    def __len__(self):
        if self._length is None:
            self._length = sum(1 for path in self.files for _ in shards.read_samples(path))
        return self._length

    def __iter__(self):
        for path in self.files:
            report = shards.Report()
            for sample in shards.read_samples(path, report):
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


class LayoutBenchmark(BenchmarkBase):
    """A split of one of the paper's benchmarks in MMSegmentation's layout. layout: a key of LAYOUTS."""

    def __init__(self, name, layout, folder, split):
        self.layout, folder = LAYOUTS[layout], Path(folder)
        images, labels, *listing = (folder / part for part in self.layout.parts(split))
        # What tells the pictures: voc and voc20 agree on their listing, coco_object and coco_stuff on their folder.
        super().__init__(name, CLASSES / f"{self.layout.classes}.txt", (listing or [images])[0])
        if self.layout.zero_ignored and self.background:
            self.classes = self.named
        for path, missing in {folder: NotHere, labels.parent: NotHere, **dict.fromkeys(listing, FileNotFoundError)}.items():
            if not path.exists():
                raise missing(self._not_found(f"{path} does not exist", folder, split))
        self.keys = self.layout.keys(folder, split)
        if not self.keys:
            raise FileNotFoundError(self._not_found(f"no pictures in {(listing or [images])[0]}", folder, split))
        at = [[folder / part.format(split=split, key=key) for key in self.keys] for part in (self.layout.images, self.layout.labels)]
        for path in (*at[0], *at[1]):
            if not path.is_file():
                raise FileNotFoundError(self._not_found(f"{path} does not exist", folder, split))
        self.files, self.label_files = at

    def _not_found(self, what, folder, split):
        expected = ", ".join(self.layout.parts(split))
        return f"benchmark {self.name}: {what}; expected {expected} in {folder}: {self.layout.source}"

    def __len__(self):
        return len(self.files)

    def __iter__(self):
        for key, image, labels in zip(self.keys, self.files, self.label_files, strict=True):
            truth = self.layout.decoded(np.asarray(Image.open(labels)))
            yield self._checked(key, Image.open(image).convert("RGB"), truth)


def open_benchmark(name, settings, calibration=False):
    """The benchmark that params' `benchmarks` describes under `name`. settings: params.Benchmark.

    calibration: open instead the pictures that a background threshold may be chosen on, none of which is evaluated: the
    training split of a layout, settings.calibration of other benchmarks. Raises ValueError if there are none or they are
    not other ones, NotHere or FileNotFoundError if files are missing.
    """
    evaluated = _open(name, settings, settings.folder or settings.shards, "evaluated")
    if not calibration:
        return evaluated
    if not (settings.layout or settings.calibration):
        raise ValueError(f"benchmark {name}: benchmarks.{name}.calibration names no pictures to choose a threshold on")
    other = _open(name, settings, settings.calibration or settings.folder, "calibration")
    if other.classes != evaluated.classes:
        raise ValueError(f"benchmark {name}: {other.source} and {evaluated.source} hold different classes")
    seen = {_identity(path) for path in evaluated.files}
    shared = next((path for path in other.files if _identity(path) in seen), None)
    if shared is not None:
        raise ValueError(f"benchmark {name}: {shared} is evaluated: no threshold may be chosen on it")
    return other


def _open(name, settings, where, split):
    if settings.layout:
        return LayoutBenchmark(name, settings.layout, where, getattr(LAYOUTS[settings.layout], split))
    if settings.folder:
        return FolderBenchmark(name, where)
    return ShardBenchmark(name, where, settings.label, settings.classes)


def _identity(path):
    """What tells a file from others, whatever links lead to it."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def open_all(settings_by_name):
    """The benchmarks of params that are on this machine, in order; an optional one that is not is skipped with one printed line.

    Raises NotHere if none is left.
    """
    opened = []
    for name, settings in settings_by_name.items():
        try:
            opened.append(open_benchmark(name, settings))
        except NotHere as missing:
            if not settings.optional:
                raise
            print(f"skipped, because it is optional: {missing}")
    if not opened:
        raise NotHere(f"none of the benchmarks is there: {', '.join(settings_by_name)}")
    return opened


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
    """Colours to draw classes in, (C, 3) uint8: background black, the others evenly around the wheel in three lightnesses.

    Neighbours in a list of many classes lie far apart on the wheel, for there like ones stand together.
    """
    named = sum(name != BACKGROUND for name in classes)
    step = next(step for step in (*range(round(0.38 * named), 0, -1), 1) if math.gcd(step, named) == 1)
    light = [(0.5, 0.75, 0.32)[place % 3] for place in range(named)]
    if named % 3 == 1:
        light[-1] = 0.75 if named > 1 else 0.5  # the last place meets the first
    wheel = [colorsys.hls_to_rgb(place / named, light[place], 0.85) for place in range(named)]
    colours = [wheel[index * step % named] for index in range(named)]
    return (np.array([(0, 0, 0)] * (BACKGROUND in classes) + colours) * 255).astype(np.uint8)
