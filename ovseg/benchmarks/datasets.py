"""Benchmark datasets, images with label maps and class names: in a folder, in shards, or one of layouts.py."""

import functools
import io
import itertools
from collections import Counter
from pathlib import Path

from ..data import shards
from ..data.images import read_image, read_label_map
from ..segmentation.names import read_classes, synonyms
from ..segmentation.windows import BACKGROUND
from .layouts import CLASSES, IGNORED, LAYOUTS


class NotHere(FileNotFoundError):
    """The benchmark is not on this machine: its folder, its label folder or its shards do not exist."""


def _stop(error):
    raise error


class BenchmarkBase:
    """Iterating yields (key, PIL RGB image, label map (H, W) of class indices and 255); len() is the number of images.
    classes: names in the order of label values, of several the first. background: whether the first class is "background",
    pixels of no other class. named: all classes but the background. texts: of these, all names, as in "car; automobile".
    source: equal if images and their order are. files: paths of images or shards. keys, label_files: of each image; empty
    for shards. Opening raises NotHere, FileNotFoundError if only a part is missing, or ValueError on bad names. Iterating
    raises ValueError on an unreadable file or a wrong label map."""

    keys = label_files = ()

    def __init__(self, name, classes, source):
        self.name, self.source = name, str(source)
        listed = self._read(read_classes, classes, classes)
        if len(listed) > IGNORED:
            raise ValueError(f"benchmark {name}: {classes}: holds {len(listed)} classes: must be at most {IGNORED}")
        self.classes = [synonyms(label)[0] for label in listed]
        self.background = self.classes[0] == BACKGROUND
        self.named, self.texts = self.classes[self.background :], listed[self.background :]

    def __len__(self):
        return len(self.files)

    def __iter__(self):
        for key, image, stored in self.samples():
            labels = self.decoded(stored)
            height, width = labels.shape
            if image.size != (width, height):
                raise ValueError(f"benchmark {self.name}: {key}: image is {image.width}x{image.height}, label map {width}x{height}")
            if (largest := labels[labels != IGNORED].max(initial=0)) >= (count := len(self.classes)):
                raise ValueError(f"benchmark {self.name}: label map {key} holds {largest}: must be 0 to {count - 1} or {IGNORED}")
            yield key, image, labels

    def decoded(self, labels):
        """Class indices of a label map as stored, of the same shape."""
        return labels

    def samples(self, step=1, failed=_stop):
        """Yields (key, PIL RGB image, label map (H, W) as stored) of every `step`-th picture; failed(ValueError) for unreadable ones."""
        for key, image, labels in zip(self.keys[::step], self.files[::step], self.label_files[::step], strict=True):
            try:
                yield key, self._read(read_image, image, image), self._read(read_label_map, labels, labels)
            except ValueError as error:
                failed(error)

    def _read(self, reader, file, where):
        try:
            return reader(file)
        except (ValueError, OSError, shards.BadSample) as error:
            raise ValueError(f"benchmark {self.name}: {where}: {error}") from None

    def _require(self, paths, hint="", kind=FileNotFoundError):
        if missing := [path for path in paths if not path.exists()]:
            raise kind(f"benchmark {self.name}: {missing[0]} does not exist{hint}")


class FolderBenchmark(BenchmarkBase):
    """A folder with images/ (jpg, png, webp), labels/ (png of the same name) and classes.txt (one class per line). classes: another
    list in its place, of as many classes as classes.txt, if the folder has one."""

    def __init__(self, name, folder, classes=None):
        self.name, self.folder = name, Path(folder)
        images, labels, own = (self.folder / part for part in ("images", "labels", "classes.txt"))
        hint = ": needed are images/, labels/ and classes.txt"
        self._require((self.folder, labels), hint, NotHere)
        self._require((images, Path(classes or own)), hint)
        super().__init__(name, classes or own, self.folder)
        if classes and own.exists() and (count := len(self._read(read_classes, own, own))) != len(self.classes):
            raise ValueError(f"benchmark {name}: {classes} holds {len(self.classes)} classes, {own} {count}: must be the same classes")
        self.files = sorted(path for path in images.iterdir() if path.suffix.lower()[1:] in shards.IMAGES)
        self.keys = [path.stem for path in self.files]
        self.label_files = [labels / f"{key}.png" for key in self.keys]
        if not self.files:
            raise FileNotFoundError(f"benchmark {name}: {images} holds no images ({', '.join(shards.IMAGES)})")
        if twice := [key for key, count in Counter(self.keys).items() if count > 1]:
            raise ValueError(f"benchmark {name}: {images} holds several images named {twice[0]}")
        self._require(self.label_files)


class ShardBenchmark(BenchmarkBase):
    """Shards, as in shards.expand. label: extension of the label maps, e.g. "seg.png". classes: a file with one name per line."""

    def __init__(self, name, spec, label, classes):
        try:
            self.files = shards.expand(spec)
        except FileNotFoundError as error:
            kind = FileNotFoundError if isinstance(error, shards.Incomplete) else NotHere
            raise kind(f"benchmark {name}: {error}") from None
        super().__init__(name, classes, spec)
        self.label = label

    _length = functools.cached_property(lambda self: sum(1 for path in self.files for _ in shards.read_samples(path)))

    def __len__(self):
        return self._length

    def samples(self, step=1, failed=_stop):
        index = itertools.count()
        for path in self.files:
            report = shards.Report()
            for sample in (sample for sample in shards.read_samples(path, report) if next(index) % step == 0):
                key, where = sample["__key__"], f"{path}: sample {sample['__key__']}"
                try:
                    if self.label not in sample:
                        raise ValueError(f"benchmark {self.name}: {where} has no {self.label}")
                    labels = self._read(read_label_map, io.BytesIO(sample[self.label]), f"{where}: {self.label}")
                    yield key, self._read(shards.decode_image, sample, where), labels
                except ValueError as error:
                    failed(error)
            if report.skipped:  # e.g. a truncated tar: fewer images would make it another benchmark
                failed(ValueError(f"benchmark {self.name}: {path}: {', '.join(report.skipped)}"))


class LayoutBenchmark(BenchmarkBase):
    """A split of one of the paper's benchmarks in MMSegmentation's layout. layout: a key of LAYOUTS."""

    def __init__(self, name, layout, folder, split):
        classes, layout, folder = CLASSES / f"{layout}.txt", LAYOUTS[layout], Path(folder)
        self.decoded = layout.decoded
        parts = [part for part in (layout.images, layout.labels, layout.listing) if part]
        images, labels, *listing = (folder / part.format(split=split, key="*") for part in parts)
        listed = (listing or [images])[0]  # equal for voc and voc20, and for coco_object and coco_stuff, which share images
        super().__init__(name, classes, listed)
        needed = ', '.join(part.format(split=split, key='*') for part in parts)
        hint = f": needed are {needed} in {folder} (docs/data.md)"
        self._require((folder, labels.parent), hint, NotHere)
        self._require(listing, hint)
        if listing:
            self.keys = listed.read_text().split()
        else:  # sorted; Cityscapes has a folder for each city
            start, suffix = parts[0].format(split=split, key="*").split("*")
            found = sorted((folder / start).rglob(f"*{suffix}"))
            self.keys = [path.relative_to(folder / start).as_posix().removesuffix(suffix) for path in found]
        if not self.keys:
            raise FileNotFoundError(f"benchmark {name}: no pictures in {listed}{hint}")
        self.files, self.label_files = ([folder / part.format(split=split, key=key) for key in self.keys] for part in parts[:2])
        self._require(self.files + self.label_files, hint)


def open_benchmark(name, settings, split="evaluated"):
    """The benchmark `name` of params' `benchmarks`. settings: schema.Benchmark. split: "evaluated", or "calibration" for choosing a
    background threshold: a layout's training split, else settings.calibration. Raises what opening a BenchmarkBase raises."""
    if settings.layout:
        return LayoutBenchmark(name, settings.layout, settings.folder, getattr(LAYOUTS[settings.layout], split))
    where = settings.calibration if split == "calibration" else settings.folder or settings.shards
    return FolderBenchmark(name, where) if settings.folder else ShardBenchmark(name, where, settings.label, settings.classes)


def open_benchmarks(settings_by_name):
    """Open params' benchmarks, in order; an optional one that is not on this machine is skipped with a printed line. Raises NotHere if a
    required one is missing or none is left, FileNotFoundError if one is incomplete."""
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
