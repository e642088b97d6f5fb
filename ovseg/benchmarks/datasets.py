"""Benchmark datasets, images with label maps and class names: in a folder, in shards, or one of layouts.py."""

import functools
import io
import itertools
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import shards
from ..data.images import list_pictures, read_image, read_label_map, some
from ..segmentation.names import read_classes, synonyms
from ..segmentation.windows import BACKGROUND
from .layouts import CLASSES, LAYOUTS, ignored
from .notes import Notes


class NotHere(FileNotFoundError):
    """The benchmark is not on this machine: its folder, its label folder or its shards do not exist."""


def _stop(error):
    raise error


def _key(path, folder):
    """A file's path in a folder without its suffix, with one encoding of accents: macOS's file names have another."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


class BenchmarkBase:
    """Iterating yields (key, PIL RGB image, label map (H, W) of class indices and `ignored`); len() is the number of images.
    classes: names in the order of label values, of several the first. background: whether the first is "background", pixels of no
    other class. named: all classes but the background. texts: of these, all names, as in "car; automobile". source: equal if
    images and their order are. files: paths of images or shards. keys, label_files: of each image; empty for shards. notes: lines
    on files that are not read. Opening raises NotHere, FileNotFoundError if only a part is missing, or ValueError on bad names.
    Iterating raises ValueError on an unreadable file or a wrong label map, and at its end prints what notes.Notes has found."""

    keys = label_files = notes = ()

    def __init__(self, name, classes, source):
        self.name, self.source = name, str(source)
        listed = self._read(read_classes, classes, classes)
        self.ignored = ignored(len(listed))
        self.classes = [synonyms(label)[0] for label in listed]
        self.background = self.classes[0] == BACKGROUND
        self.named, self.texts = self.classes[self.background :], listed[self.background :]

    def __len__(self):
        return len(self.files)

    def part(self, first=0, step=1):
        """Iterate over every `step`-th picture from `first` < step on; the others are not decoded, and notes are for all pictures only."""
        notes = Notes(self)
        for key, image, stored in self.samples(step, first=first):
            if wrong := notes.add(key, image, stored, np.unique(stored)):
                raise ValueError(f"benchmark {self.name}: {wrong}")
            labels = self.decoded(np.asarray(stored))
            if (largest := labels[labels != self.ignored].max(initial=0)) >= (count := len(self.classes)):
                raise ValueError(f"benchmark {self.name}: label map {key} holds {largest}: must be 0 to {count - 1} or {self.ignored}")
            yield key, image, labels
        for line in notes.lines() if step == 1 else ():  # of all pictures
            tqdm.write(f"note: benchmark {self.name}: {line}", sys.stderr)

    __iter__ = part

    def decoded(self, labels):
        """Class indices of a label map as stored, of the same shape."""
        return labels

    def samples(self, step=1, failed=_stop, first=0):
        """Yields (key, PIL RGB image, PIL label map as stored) of every `step`-th picture; failed(ValueError) for unreadable ones."""
        for key, image, labels in zip(*(files[first::step] for files in (self.keys, self.files, self.label_files)), strict=True):
            try:
                yield key, self._read(read_image, image, image), self._read(read_label_map, labels, labels)
            except ValueError as error:
                failed(error)

    def _read(self, reader, file, where):
        try:
            return reader(file)
        except (ValueError, OSError, shards.BadSample) as error:
            raise ValueError(f"benchmark {self.name}: {where}: {error}") from None

    def _leave_out(self, files, folder):
        if files:
            names = some([path.relative_to(folder).as_posix() for path in files])
            self.notes = [f"{len(files):,} files are left out, as they are no pictures or belong to none: {names}"]

    def _require(self, paths, hint="", kind=FileNotFoundError):
        if missing := [path for path in paths if not path.exists()]:
            raise kind(f"benchmark {self.name}: {missing[0]} does not exist{hint}")


class FolderBenchmark(BenchmarkBase):
    """A folder with images/, labels/ (pngs of the same names) and classes.txt (one class per line). images/ may have subfolders.
    classes: another list in place of classes.txt, of as many classes as that, if the folder has one."""

    def __init__(self, name, folder, classes=None):
        self.name, self.folder = name, Path(folder)
        images, labels, own = (self.folder / part for part in ("images", "labels", "classes.txt"))
        hint = ": needed are images/, labels/ and classes.txt"
        self._require((self.folder, labels), hint, NotHere)
        self._require((images, Path(classes or own)), hint)
        super().__init__(name, classes or own, self.folder)
        if classes and own.exists() and (count := len(self._read(read_classes, own, own))) != len(self.classes):
            raise ValueError(f"benchmark {name}: {classes} holds {len(self.classes)} classes, {own} {count}: must be the same classes")
        self.files, others = list_pictures(images)
        self.keys = [_key(path, images) for path in self.files]
        if not self.files:
            raise FileNotFoundError(f"benchmark {name}: {images} holds no images, only: {some([path.name for path in others])}")
        if twice := [key for key, count in Counter(self.keys).items() if count > 1]:
            raise ValueError(f"benchmark {name}: {images} holds several images named {twice[0]}")
        maps, other_labels = list_pictures(labels)
        of_key = {_key(path, labels): path for path in sorted(maps, key=lambda path: path.suffix.lower() == ".png")}  # the last one counts
        if missing := [key for key in self.keys if key not in of_key]:
            there = some([path.relative_to(labels).as_posix() for path in maps + other_labels])
            raise FileNotFoundError(f"benchmark {name}: {labels}/{missing[0]}.png does not exist, only: {there}")
        self.label_files = [of_key[key] for key in self.keys]
        self._leave_out([*others, *sorted({*maps, *other_labels} - {*self.label_files})], self.folder)


class ShardBenchmark(BenchmarkBase):
    """Shards, as in shards.expand. label: extension of the label maps, e.g. "seg.png". classes: a file with one name per line."""

    def __init__(self, name, spec, label, classes):
        try:
            self.files = shards.expand(spec)
        except FileNotFoundError as error:
            kind = FileNotFoundError if isinstance(error, shards.Incomplete) else NotHere
            raise kind(f"benchmark {name}: {error}") from None
        super().__init__(name, classes, spec)
        self.label = label.lower()  # as extensions in samples are

    _length = functools.cached_property(lambda self: sum(1 for path in self.files for _ in shards.read_samples(path, label=self.label)))

    def __len__(self):
        return self._length

    def samples(self, step=1, failed=_stop, first=0):
        index, repaired = itertools.count(), Counter()
        for path in self.files:
            report = shards.Report()
            for sample in (sample for sample in shards.read_samples(path, report, self.label) if next(index) % step == first):
                key, where = sample["__key__"], f"{path}: sample {sample['__key__']}"
                try:
                    if self.label not in sample:
                        there = ", ".join(name for name in sample if not name.startswith("__"))
                        raise ValueError(f"benchmark {self.name}: {where} has no {self.label} next to {there} (see tar --sort=name)")
                    labels = self._read(read_label_map, io.BytesIO(sample.pop(self.label)), f"{where}: {self.label}")
                    yield key, self._read(shards.decode_image, sample, where), labels
                except ValueError as error:
                    failed(error)
            if report.skipped:  # e.g. a truncated tar: fewer images would make it another benchmark
                failed(ValueError(f"benchmark {self.name}: {path}: {', '.join(report.skipped)}"))
            repaired += report.repaired
        self.notes = [f"{kind}: {count:,}" for kind, count in repaired.items()]


class LayoutBenchmark(BenchmarkBase):
    """A split of one of the paper's benchmarks in MMSegmentation's layout. layout: a key of LAYOUTS."""

    def __init__(self, name, layout, folder, split):
        classes, layout, folder = CLASSES / f"{layout}.txt", LAYOUTS[layout], Path(folder)
        self.decoded = layout.decoded
        parts = [part for part in (layout.images, layout.labels, layout.listing) if part]
        images, labels, *listing = (folder / part.format(split=split, key="*") for part in parts)
        listed = (listing or [images])[0]  # equal for voc and voc20, and for coco_object and coco_stuff, which share images
        super().__init__(name, classes, listed)
        needed = ", ".join(part.format(split=split, key="*") for part in parts)
        hint = f": needed are {needed} in {folder} (docs/data.md)"
        self._require((folder, labels.parent), hint, NotHere)
        self._require(listing, hint)
        if listing:
            self.keys = self._read(lambda path: path.read_text(encoding="utf-8-sig"), listed, listed).split()
        else:  # sorted; Cityscapes has a folder for each city
            start, suffix = parts[0].format(split=split, key="*").split("*")
            pictures, others = list_pictures(folder / start)
            found = [path for path in pictures if path.name.endswith(suffix)]
            self.keys = [path.relative_to(folder / start).as_posix().removesuffix(suffix) for path in found]
            self._leave_out([*others, *sorted({*pictures} - {*found})], folder)
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
