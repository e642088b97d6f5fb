"""Data checks behind `ovseg check-data`: counts, sizes, captions, label ids by class, and signs that labels are off by one.

Labels that are off by one are still valid ids: nothing fails, but mIoU is near 0.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from .. import params
from ..benchmarks import datasets
from ..benchmarks.layouts import IGNORED
from ..data import captions, shards

RENDERED = "data/prepared/scenes/train-*.tar"
SEGMENTED = 20  # pictures that a model segments to find shifted labels
SHOWN = 5  # warnings of one kind that are printed
ENOUGH = 5  # pictures and classes needed before ids can reveal a shift
AGREEING = 0.2  # mean share of a class's pixels that a shift has to explain
ODD = 0.5  # share of odd captions above which there is a warning


class Finding(NamedTuple):
    """The report on one part of the data. warnings: what is wrong. notes: what may be wrong. Both are lists of sentences."""

    text: str
    warnings: list = []
    notes: list = []


@dataclass
class Data:
    """The data to check. paths: shards of pairs. benchmarks: opened ones. absent: a Finding for each part that cannot be opened."""

    paths: list = field(default_factory=list)
    benchmarks: list = field(default_factory=list)
    absent: list = field(default_factory=list)
    max_bad_fraction: float = 0.0


def open_study():
    """The Data of params.yaml, including what `prepare` renders and the calibration pictures. Raises ParamsError."""
    params.enter_project()
    p = params.load()
    found = Data(max_bad_fraction=p.data.max_bad_fraction)
    try:
        found.paths = shards.expand(p.data.shards or RENDERED)
    except FileNotFoundError as error:
        hint = "" if p.data.shards else "; `dvc repro prepare` renders them"
        found.absent.append(Finding("pairs: cannot be opened", [f"{error}{hint}"]))
    for name, settings in p.benchmarks.items():
        for split in ("evaluated", "calibration") if settings.calibration else ("evaluated",):
            title = name if split == "evaluated" else f"{name}, calibration"
            try:
                found.benchmarks.append(datasets.open_benchmark(title, settings, split))
            except (OSError, ValueError) as error:
                why = str(error).removeprefix(f"benchmark {title}: ")
                if settings.optional and isinstance(error, datasets.NotHere):
                    found.absent.append(Finding(f"benchmark {title}: left out, because it is optional and {why}"))
                else:
                    found.absent.append(Finding(f"benchmark {title}: cannot be opened", [why]))
    return found


def check_data(data, limit, segmenter=None):
    """Yields a Finding for the pairs and for each benchmark.

    data: Data. limit: maximum number of pairs, and of pictures per benchmark; 0: all. segmenter: as in `agreement`, or None.
    """
    if data.paths:
        pairs = count_pairs(data.paths, limit)
        yield Finding(describe_pairs(data.paths, pairs), check_pairs(data.paths, pairs, data.max_bad_fraction))
    for benchmark in data.benchmarks:
        counts = count_labels(benchmark, limit)
        warnings = check_labels(benchmark, counts)
        if segmenter:
            try:
                warnings += check_agreement(agreement(segmenter, benchmark))
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                warnings.append(f"the model cannot segment its pictures: {' '.join(str(error).split())}")
        yield Finding(describe_labels(benchmark, counts), warnings, note_labels(benchmark, counts))
    yield from data.absent


@dataclass
class LabelCounts:
    """Counts over some of a benchmark's pictures: (width, height) of each; pixels, pictures and first key per stored label id."""

    sizes: list = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)
    pictures: Counter = field(default_factory=Counter)
    first: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)  # messages on unreadable files and label maps of the wrong size


def count_labels(benchmark, limit):
    """LabelCounts of at most `limit` pictures, evenly spread; 0: all. benchmark: BenchmarkBase."""
    counts, step = LabelCounts(), _step(benchmark, limit)
    samples = benchmark.samples(step, lambda error: counts.failed.append(str(error).removeprefix(f"benchmark {benchmark.name}: ")))
    total = math.ceil(len(benchmark) / step)
    for key, image, labels in tqdm(samples, benchmark.name, total, mininterval=2, leave=False, disable=None):
        counts.sizes.append(image.size)
        if labels.shape != (image.height, image.width):
            counts.failed.append(f"{key}: image is {image.width}x{image.height}, label map {labels.shape[1]}x{labels.shape[0]}")
        for label, pixels in zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True):
            counts.pixels[label] += pixels
            counts.pictures[label] += 1
            counts.first.setdefault(label, key)
    return counts


def _step(benchmark, limit):
    return max(1, math.ceil(len(benchmark) / limit)) if limit else 1


def _indices(benchmark, counts):
    """{stored label id: its class index, IGNORED, or None if no class has it}."""
    found = {stored: benchmark.decoded(np.array([stored], np.int64)).item() for stored in sorted(counts.pixels)}
    return {stored: index if index == IGNORED or 0 <= index < len(benchmark.classes) else None for stored, index in found.items()}


def check_labels(benchmark, counts):
    """What is wrong with the labels of a benchmark: a list of sentences. counts: from count_labels."""
    found = _first(counts.failed, "more that cannot be read or have another size")
    if not counts.sizes:
        return [*found, "no picture could be read"]
    total, unknown = sum(counts.pixels.values()), [stored for stored, index in _indices(benchmark, counts).items() if index is None]
    shares = {stored: counts.pixels[stored] / total for stored in unknown}
    ids = [f"id {stored} belongs to no class: {share:.1%} of pixels, first in {counts.first[stored]}" for stored, share in shares.items()]
    return found + _first(ids, f"more ids, up to {max(unknown, default=0)}, belong to no class")


def note_labels(benchmark, counts):
    """What may be wrong with the labels of a benchmark, judged by ids alone: a list of sentences. counts: from count_labels."""
    indices, count = _indices(benchmark, counts), len(benchmark.classes)
    present = {index for index in indices.values() if index not in (None, IGNORED)}
    unknown = [stored for stored, index in indices.items() if index is None]
    layout = getattr(benchmark, "layout", None)
    first_id = 1 if layout and layout.zero_ignored else 0
    found = []
    if unknown == [count + first_id]:
        void = "" if 0 not in indices or first_id else f" (or is {unknown[0]} for pixels of no class, which is {IGNORED} here)"
        found.append(f"ids go one above the last class: do they count from {first_id + 1} where {first_id} is expected{void}?")
    if layout and layout.zero_ignored and layout.classes != "voc" and IGNORED in indices:  # VOC's own borders are 255
        found.append(f"{IGNORED} is there, which this layout's files do not hold: have ids been reduced by one already?")
    if count > 2 and set(indices) == {0, IGNORED}:
        found.append(f"only ids 0 and {IGNORED} are there: are these masks of one class?")
    if len(counts.sizes) < ENOUGH or count < ENOUGH or unknown:
        return found
    if 0 not in present and len(present) > count / 2:
        low = (
            "classes without the background, so that all are one too low"
            if benchmark.background
            else "from 1, so that all are one too high"
        )
        found.append(f"the first class, {benchmark.classes[0]}, is in no picture, and most others are: do ids count {low}?")
    elif set(range(count)) - present == {count - 1}:
        found.append(f"every class but the last, {benchmark.classes[-1]}, is there: are all ids one too low?")
    return found


def _first(messages, rest):
    """The first SHOWN messages, and the number of remaining ones."""
    more = len(messages) - SHOWN
    return messages[:SHOWN] + ([f"{more} {rest}"] if more > 0 else [])


def agreement(segmenter, benchmark, count=SEGMENTED):
    """How often predictions agree with labels shifted by -1, 0 and 1: {shift: share of pixels predicted as label + shift}.

    Shares are averaged over labels, on at most `count` evenly spread pictures. Background and ignored pixels do not count. Returns None
    with fewer than ENOUGH labels.
    """
    pixels, agreeing = Counter(), defaultdict(Counter)
    for _, image, stored in islice(benchmark.samples(_step(benchmark, count), lambda error: None), count):
        labels = benchmark.decoded(stored).astype(int)
        predicted = segmenter.segment(image, benchmark.named, benchmark.background).labels
        if labels.shape != predicted.shape:
            continue
        # N classes have labels 0..N-1: label N, shifted by -1, is the last class
        judged = (labels >= benchmark.background) & (labels <= len(benchmark.classes)) & (labels != IGNORED)
        judged &= predicted >= benchmark.background
        pixels.update(labels[judged].tolist())
        for shift in (-1, 0, 1):
            agreeing[shift].update(labels[judged & (predicted == labels + shift)].tolist())
    if len(pixels) < ENOUGH:
        return None
    return {shift: mean(agreeing[shift][label] / pixels[label] for label in pixels) for shift in (-1, 0, 1)}


def check_agreement(found):
    """A list with one warning if predictions agree better with shifted labels, else empty. found: from `agreement`."""
    best = max(found, key=found.get) if found else 0
    if not best or found[best] < max(AGREEING, 2 * found[0]):
        return []
    shares = f"{found[best]:.0%} of a class' pixels are predicted as label {best:+d}, {found[0]:.0%} as their label"
    return [f"labels look off by one to the model: {shares}"]


def describe_labels(benchmark, counts):
    """The report on a benchmark: pictures, sizes, and a table of its label ids."""
    total, indices = sum(counts.pixels.values()), _indices(benchmark, counts)
    names = dict(enumerate(benchmark.classes)) | {IGNORED: "(ignored)", None: "(no class)"}
    rows = [[stored, names[index], f"{counts.pixels[stored] / total:.2%}", counts.pictures[stored]] for stored, index in indices.items()]
    table = tabulate(rows, ["id", "class", "pixels", "pictures"], colalign=("right", "left", "right", "right"), disable_numparse=True)
    lines = [f"benchmark {benchmark.name}: {len(counts.sizes):,} of {len(benchmark):,} pictures, {len(benchmark.classes)} classes"]
    if not rows:
        return lines[0]
    missing = [name for index, name in enumerate(benchmark.classes) if index not in indices.values()]
    lines += [f"sizes: {_sizes(counts.sizes)}", *table.splitlines()]
    return "\n  ".join(lines + ([f"in no picture: {', '.join(missing)}"] if missing else []))


@dataclass
class PairCounts:
    """Counts over some pairs: shards.Report, each image's (width, height) and caption, captions without a noun, shards read."""

    report: shards.Report
    sizes: list
    captions: list
    without_nouns: int
    shards: int


def count_pairs(paths, limit):
    """PairCounts of at most `limit` pairs, the first ones of evenly spread shards; 0: all."""
    some = paths[:: math.ceil(len(paths) / limit)] if limit else paths
    each = math.ceil(limit / len(some)) if limit else None
    counts = PairCounts(shards.Report(), [], [], 0, len(some))
    for path in tqdm(some, "pairs", mininterval=2, leave=False, disable=None):
        rest = min(each, limit - len(counts.captions)) if limit else None
        for _, image, caption in islice(shards.pairs(path, counts.report), rest):
            counts.sizes.append(image.size)
            counts.captions.append(caption)
            counts.without_nouns += not captions.nouns(caption)
    return counts


def check_pairs(paths, counts, max_bad_fraction):
    """What is wrong with pairs: a list of sentences. paths: all shards."""
    found, pairs = [], len(counts.captions)
    names = Counter(Path(path).stem for path in paths)
    found += [f"{count} shards are named {name}: names have to be distinct" for name, count in names.items() if count > 1][:1]
    if not pairs:
        found.append("no usable pair")
    if count := counts.report.skipped["truncated tar"]:
        found.append(f"{count} shards end early or cannot be read")
    if counts.report.bad_fraction > max_bad_fraction:
        allowed = f"data.max_bad_fraction allows {max_bad_fraction:.1%}"
        found.append(f"{counts.report.bad_fraction:.1%} of the samples cannot be used: {allowed}")
    if pairs and len(set(counts.captions)) < ODD * pairs:
        found.append(f"{pairs - len(set(counts.captions)):,} of {pairs:,} captions are repeated: a caption should tell of its image")
    if counts.without_nouns > ODD * pairs:
        found.append(f"{counts.without_nouns:,} of {pairs:,} captions have no English noun: prompts are made of nouns")
    return found


def describe_pairs(paths, counts):
    """The report on pairs: shards, skipped and repaired samples, sizes, captions."""
    lines = [f"pairs: {len(counts.captions):,} looked at, in {counts.shards:,} of {len(paths):,} shards, the first {paths[0]}"]
    for what, kinds in {"skipped": counts.report.skipped, "repaired": counts.report.repaired}.items():
        lines += [f"{what}: {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}"] if kinds else []
    if counts.captions:
        words = sorted(len(caption.split()) for caption in counts.captions)
        lines.append(f"sizes: {_sizes(counts.sizes)}")
        lines.append(f"words in a caption: {words[0]} to {words[-1]}, median {median(words):g}")
        lines.append(f"{len(set(counts.captions)):,} distinct captions, {counts.without_nouns:,} without a noun")
        lines += [f'"{caption}"' for caption in counts.captions[:3]]
    return "\n  ".join(lines)


def _sizes(sizes):
    """(width, height) of pictures in words."""
    ordered = sorted(sizes, key=lambda size: (math.prod(size), size))
    low, middle, high = (f"{width}x{height}" for width, height in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
    return low if low == high else f"{low} to {high}, median {middle}"
