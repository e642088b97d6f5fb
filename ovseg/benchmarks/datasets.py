"""Benchmark datasets, images with label maps and class names: in a folder, in shards, or one of layouts.py."""

import hashlib
import io
import itertools
import json
from collections import Counter
from pathlib import Path

from PIL import Image

from ..data import shards
from ..data.files import checksum
from ..data.images import label_map, rgb
from ..segmentation.windows import BACKGROUND
from .layouts import CLASSES, IGNORED, LAYOUTS


class NotHere(FileNotFoundError):
    """The benchmark is not on this machine: its folder, its label folder or its shards do not exist."""


def _stop(error):
    raise error


class BenchmarkBase:
    """Iterating yields (key, PIL RGB image, label map (H, W) of class indices and 255); len() is the number of images.

    classes: names in the order of label values. background: whether the first is "background": pixels of no other class,
    predicted where the best score is below a threshold. named: the classes with a text, all but the background.
    source: benchmarks with the same source hold the same images in the same order. files, label_files: paths of images and
    label maps; shards hold both. label: in shards, the extension of label maps. decoded: converts a stored label map to class
    indices of the same shape. Opening raises NotHere, FileNotFoundError if only a part is missing, or ValueError on bad names.
    Iterating raises ValueError on a label map with the wrong size or invalid values, or on an unreadable file.
    """

    label = None

    def __init__(self, name, classes, source):
        self.name, self.source = name, str(source)
        try:
            lines = Path(classes).read_text(encoding="utf-8-sig").splitlines()  # with or without a byte order mark
        except UnicodeDecodeError:
            raise ValueError(f"benchmark {name}: {classes} is not UTF-8") from None
        self.classes = [line.strip() for line in lines if line.strip()]
        if not 2 <= len(self.classes) <= IGNORED or len({label.lower() for label in self.classes}) < len(self.classes):
            raise ValueError(f"benchmark {name}: {classes} must hold 2 to {IGNORED} distinct names, a line each")
        if misplaced := [label for label in self.classes if label.lower() == BACKGROUND and self.classes[0] != BACKGROUND]:
            raise ValueError(f"benchmark {name}: {classes} holds {misplaced[0]!r}: the background is the first class, {BACKGROUND!r}")
        self.background = self.classes[0] == BACKGROUND
        self.named = self.classes[1:] if self.background else self.classes

    @property
    def fingerprint(self):
        """A hash of the classes, the image names and sizes, the contents of label maps (or of shards), and the label extension."""
        listing = [(path.name, path.stat().st_size) for path in map(Path, self.files)]
        contents = [checksum(path) for path in self.label_files or self.files]
        return hashlib.sha256(json.dumps([self.classes, listing, contents, self.label]).encode()).hexdigest()

    @property
    def contents(self):
        """A hash of the contents of the images, in order (for shards: of the whole files)."""
        return hashlib.sha256(json.dumps([checksum(path) for path in self.files]).encode()).hexdigest()

    def __len__(self):
        return len(self.files)

    def __iter__(self):
        for key, image, stored in self.samples():
            labels = self.decoded(stored)
            if labels.shape != (image.height, image.width):
                sizes = f"image is {image.width}x{image.height}, label map {labels.shape[1]}x{labels.shape[0]}"
                raise ValueError(f"benchmark {self.name}: {key}: {sizes}")
            known = labels[labels != IGNORED]
            if known.size and known.max() >= len(self.classes):
                allowed = f"0..{len(self.classes) - 1} and {IGNORED}"
                raise ValueError(f"benchmark {self.name}: label map {key} holds {known.max()}; allowed are {allowed}")
            yield key, image, labels

    def decoded(self, labels):
        return labels

    def samples(self, step=1, failed=_stop):
        """Yields (key, PIL RGB image, label map (H, W) as stored) for every `step`-th picture, unchecked.

        failed: called with a ValueError for each unreadable picture, which is skipped.
        """
        for index in range(0, len(self), step):
            image, labels = self.files[index], self.label_files[index]
            try:
                yield self.keys[index], self._read(image, image, rgb), self._read(labels, labels, label_map)
            except ValueError as error:
                failed(error)

    def _read(self, file, where, convert):
        """Open the image in a file and apply `convert` to it. Raises ValueError that names the location."""
        try:
            with Image.open(file) as image:
                return convert(image)
        except Exception as error:  # decoders raise whatever they like on broken bytes
            raise ValueError(f"benchmark {self.name}: {where}: {error}") from None


class FolderBenchmark(BenchmarkBase):
    """A folder with images/ (jpg, png, webp), labels/ (png of the same name) and classes.txt (one name per line)."""

    def __init__(self, name, folder):
        self.folder = Path(folder)
        for part, missing in {"": NotHere, "labels": NotHere, "images": FileNotFoundError, "classes.txt": FileNotFoundError}.items():
            if not (self.folder / part).exists():
                raise missing(f"benchmark {name}: {self.folder / part} does not exist; expected images/, labels/ and classes.txt")
        super().__init__(name, self.folder / "classes.txt", self.folder)
        self.files = sorted(path for path in (self.folder / "images").iterdir() if path.suffix.lower()[1:] in shards.IMAGES)
        self.keys = [path.stem for path in self.files]
        self.label_files = [self.folder / "labels" / f"{key}.png" for key in self.keys]
        if twice := [key for key, count in Counter(self.keys).items() if count > 1]:
            raise ValueError(f"benchmark {name}: several images are named {twice[0]}, for one label map labels/{twice[0]}.png")
        unlabelled = [path.stem for path in self.label_files if not path.is_file()]
        if unlabelled or not self.files:
            what = f"no label map labels/{unlabelled[0]}.png" if unlabelled else "no images in images/"
            raise FileNotFoundError(f"benchmark {name}: {what} ({self.folder})")


class ShardBenchmark(BenchmarkBase):
    """Shards, as in shards.expand. label: extension of the label maps, e.g. "seg.png". classes: a file with one name per line."""

    def __init__(self, name, spec, label, classes):
        try:
            self.files = shards.expand(spec)
        except FileNotFoundError as error:
            kind = FileNotFoundError if isinstance(error, shards.Incomplete) else NotHere
            raise kind(f"benchmark {name}: {error}") from None
        super().__init__(name, classes, spec)
        self.label, self.label_files, self._length = label, [], None

    def __len__(self):
        if self._length is None:
            self._length = sum(1 for path in self.files for _ in shards.read_samples(path))
        return self._length

    def samples(self, step=1, failed=_stop):
        """As in BenchmarkBase."""
        index = itertools.count()
        for path in self.files:
            report = shards.Report()
            for sample in shards.read_samples(path, report):
                if next(index) % step == 0:
                    try:
                        yield self._decode(sample, f"sample {sample['__key__']} of {path}")
                    except ValueError as error:
                        failed(error)
            if report.skipped:  # e.g. a truncated tar: fewer images would make it another benchmark
                failed(ValueError(f"benchmark {self.name}: {path}: {', '.join(report.skipped)}"))

    def _decode(self, sample, where):
        if self.label not in sample:
            raise ValueError(f"benchmark {self.name}: {where} has no {self.label}")
        labels = self._read(io.BytesIO(sample[self.label]), f"{where}: {self.label}", label_map)
        try:
            return sample["__key__"], shards.decode_image(sample), labels
        except shards.BadSample as bad:
            raise ValueError(f"benchmark {self.name}: {where}: {bad}") from None


class LayoutBenchmark(BenchmarkBase):
    """A split of one of the paper's benchmarks in MMSegmentation's layout. layout: a key of LAYOUTS."""

    def __init__(self, name, layout, folder, split):
        self.layout, folder = LAYOUTS[layout], Path(folder)
        images, labels, *listing = (folder / part for part in self.layout.parts(split))
        listed = (listing or [images])[0]  # equal for voc and voc20, and for coco_object and coco_stuff, which share images
        super().__init__(name, CLASSES / f"{self.layout.classes}.txt", listed)
        if self.layout.zero_ignored and self.background:
            self.classes, self.background = self.named, False
        hint = f"expected {', '.join(self.layout.parts(split))} in {folder}: {self.layout.source}"
        for path in (folder, labels.parent, *listing):
            if not path.exists():
                raise (FileNotFoundError if path in listing else NotHere)(f"benchmark {name}: {path} does not exist; {hint}")
        self.keys = self.layout.keys(folder, split)
        if not self.keys:
            raise FileNotFoundError(f"benchmark {name}: no pictures in {listed}; {hint}")
        patterns = (self.layout.images, self.layout.labels)
        self.files, self.label_files = ([folder / pattern.format(split=split, key=key) for key in self.keys] for pattern in patterns)
        for path in (*self.files, *self.label_files):
            if not path.is_file():
                raise FileNotFoundError(f"benchmark {name}: {path} does not exist; {hint}")

    def decoded(self, labels):
        return self.layout.decoded(labels)


def open_benchmark(name, settings, split="evaluated"):
    """The benchmark that params' `benchmarks` describes under `name`. settings: schema.Benchmark.

    split: "evaluated", or "calibration" for choosing a background threshold: the training split of a layout, and
    settings.calibration for other benchmarks. Raises what opening a BenchmarkBase raises.
    """
    if settings.layout:
        return LayoutBenchmark(name, settings.layout, settings.folder, getattr(LAYOUTS[settings.layout], split))
    where = settings.calibration if split == "calibration" else settings.folder or settings.shards
    return FolderBenchmark(name, where) if settings.folder else ShardBenchmark(name, where, settings.label, settings.classes)


def check_thresholds(benchmarks, thresholds):
    """Raises ValueError if an opened benchmark without background has a threshold (evaluate.thresholds)."""
    for benchmark in benchmarks:
        if benchmark.name in thresholds and not benchmark.background:
            first = f"its first class is {benchmark.classes[0]}"
            raise ValueError(f"evaluate.thresholds.{benchmark.name}: {benchmark.name} has no background; {first}")


def open_benchmarks(settings_by_name):
    """Open params' benchmarks, in order; an optional one that is not on this machine is skipped with a printed line.

    Raises NotHere if a required one is missing or none is left, FileNotFoundError if one is incomplete.
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
