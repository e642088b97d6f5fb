"""Are data what they should be? Counts, sizes, captions, label ids by class, and signs that labels are off by one.

What `ovseg check-data` prints. A benchmark whose label ids are shifted evaluates without an error, to an mIoU near 0.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from .. import params
from ..benchmarks import datasets
from ..benchmarks.layouts import IGNORED
from ..data import captions, shards

SEGMENTED = 20  # pictures that a model segments to find shifted labels
MANY = 0.5  # the share of captions from which on something odd about them is worth a warning


@dataclass
class Data:
    """What is to be checked. paths: of shards of pairs. benchmarks: opened. absent: (text, warnings) of each that cannot be opened."""

    paths: list = field(default_factory=list)
    benchmarks: list = field(default_factory=list)
    absent: list = field(default_factory=list)
    max_bad_fraction: float = 0.0


def open_study():
    """The Data of params.yaml, what `prepare` renders included. Raises ParamsError, FileNotFoundError without any pairs."""
    params.enter_project()
    p = params.load()
    rendered = "data/prepared/scenes/train-*.tar"
    try:
        found = Data(shards.expand(p.data.shards or rendered), max_bad_fraction=p.data.max_bad_fraction)
    except FileNotFoundError as error:
        hint = "" if p.data.shards else "; `dvc repro prepare` renders them"
        raise FileNotFoundError(f"{error}{hint}") from None
    for name, settings in p.benchmarks.items():
        try:
            found.benchmarks.append(datasets.open_benchmark(name, settings))
        except (OSError, ValueError) as error:
            why = str(error).removeprefix(f"benchmark {name}: ")
            if settings.optional and isinstance(error, datasets.NotHere):
                found.absent.append((f"benchmark {name}: left out, because it is optional and {why}", []))
            else:
                found.absent.append((f"benchmark {name}: cannot be opened", [why]))
    return found


def check(data, limit, segmenter=None):
    """Yields (text, warnings: a list of sentences) of the pairs and of each benchmark.

    data: Data. limit: how many pairs, and pictures of each benchmark, are looked at; 0: all. segmenter: as of `agreement`, or None.
    """
    if data.paths:
        pairs = count_pairs(data.paths, limit)
        yield describe_pairs(data.paths, pairs), check_pairs(pairs, data.max_bad_fraction)
    for benchmark in data.benchmarks:
        counts = count_labels(benchmark, limit)
        shifted = check_agreement(agreement(segmenter, benchmark)) if segmenter else []
        yield describe_benchmark(benchmark, counts), check_benchmark(benchmark, counts) + shifted
    yield from data.absent


@dataclass
class LabelCounts:
    """Of some of a benchmark's pictures: (width, height) of each; of each stored label id its pixels, pictures and first picture's key."""

    sizes: list = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)
    pictures: Counter = field(default_factory=Counter)
    first: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)  # messages of what cannot be read, and of label maps of another size


def count_labels(benchmark, limit):
    """LabelCounts of at most `limit` pictures, evenly spread; 0: all. benchmark: BenchmarkBase."""
    counts, step = LabelCounts(), math.ceil(len(benchmark) / limit) if limit else 1
    samples = benchmark.samples(step, lambda error: counts.failed.append(str(error).removeprefix(f"benchmark {benchmark.name}: ")))
    for key, image, labels in tqdm(samples, benchmark.name, len(benchmark) // step, mininterval=2, leave=False, disable=None):
        counts.sizes.append(image.size)
        if labels.shape != (image.height, image.width):
            counts.failed.append(f"{key}: image is {image.width}x{image.height}, label map {labels.shape[1]}x{labels.shape[0]}")
        for label, pixels in zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True):
            counts.pixels[label] += pixels
            counts.pictures[label] += 1
            counts.first.setdefault(label, key)
    return counts


def check_benchmark(benchmark, counts):
    """What is wrong, or looks so, with the labels of a benchmark: a list of sentences. counts: of count_labels."""
    count, found = len(benchmark.classes), list(counts.failed)
    ids = {stored: _index(benchmark, stored) for stored in counts.pixels}  # stored id -> index into the classes, or 255
    unknown = sorted(stored for stored, index in ids.items() if index != IGNORED and index >= count)
    total = sum(counts.pixels.values())
    for stored in unknown[:5]:
        share = counts.pixels[stored] / total
        found.append(f"id {stored} belongs to no class: {share:.1%} of pixels, first in {counts.first[stored]}")
    if len(unknown) > 5:
        found.append(f"{len(unknown) - 5} more ids belong to no class, up to {unknown[-1]}")
    indices = set(ids.values())
    missing = set(range(count)) - indices
    if [ids[stored] for stored in unknown] == [count]:
        start = "and id 0 is nowhere" if 0 not in ids else "0 may stand for no class, which is 255 here"
        found.append(f"labels look one too high: the id above the last class is there, {start}")
    elif missing == {0} and benchmark.background:
        found.append("no pixel is background, the first class: do the ids count classes without it? Then they are one too low")
    elif missing in ({0}, {count - 1}):
        end = "first" if missing == {0} else "last"
        found.append(f"labels may be off by one: every class is there but the {end}, {benchmark.classes[missing.pop()]}")
    if sum(counts.pictures.values()) < 1.1 * len(counts.sizes) and count > 1:
        found.append("nearly all label maps hold one id only")
    return found


def _index(benchmark, stored):
    """The index into the classes of a stored label id."""
    kind = np.uint8 if stored <= IGNORED else np.uint16
    return benchmark.decoded(np.array([stored], kind)).item()


def agreement(segmenter, benchmark, count=SEGMENTED):
    """Where predictions agree with labels shifted by -1, 0 and 1: {shift: share of pixels whose predicted class is label + shift}.

    Of at most `count` pictures, evenly spread, and of pixels whose label and prediction are named classes. nan without any.
    """
    pixels, agreeing, names = 0, Counter(), len(benchmark.classes)
    for _, image, stored in islice(benchmark.samples(math.ceil(len(benchmark) / count), lambda error: None), count):
        labels = benchmark.decoded(stored).astype(int)
        predicted = segmenter.segment(image, benchmark.named, benchmark.background).labels
        if labels.shape == predicted.shape:
            known = (labels >= benchmark.background) & (labels <= names) & (predicted >= benchmark.background)
            pixels += known.sum()
            for shift in (-1, 0, 1):
                agreeing[shift] += (predicted[known] == labels[known] + shift).sum()
    return {shift: agreeing[shift] / pixels if pixels else math.nan for shift in (-1, 0, 1)}


def check_agreement(found):
    """A warning if predictions agree better with shifted labels, in a list. found: of `agreement`."""
    best = max(found, key=found.get)
    if not found[best] > 2 * found[0]:
        return []
    return [f"labels look off by one: {found[best]:.0%} of pixels are predicted as label {best:+d}, {found[0]:.0%} as their label"]


def describe_benchmark(benchmark, counts):
    """The text of a benchmark: pictures, sizes, and a table of its label ids."""
    total, rows = sum(counts.pixels.values()), []
    for stored in sorted(counts.pixels):
        index = _index(benchmark, stored)
        name = "(ignored)" if index == IGNORED else benchmark.classes[index] if index < len(benchmark.classes) else "(no class)"
        rows.append([stored, name, f"{counts.pixels[stored] / total:.2%}", counts.pictures[stored]])
    seen = {_index(benchmark, stored) for stored in counts.pixels}
    missing = [name for index, name in enumerate(benchmark.classes) if index not in seen]
    table = tabulate(rows, ["id", "class", "pixels", "pictures"], colalign=("right", "left", "right", "right"), disable_numparse=True)
    lines = [f"benchmark {benchmark.name}: {len(counts.sizes):,} of {len(benchmark):,} pictures, {len(benchmark.classes)} classes"]
    lines += [f"sizes: {_sizes(counts.sizes)}"] if counts.sizes else []
    lines += table.splitlines() if rows else []
    return "\n  ".join(lines + ([f"in no picture: {', '.join(missing)}"] if missing else []))


@dataclass
class PairCounts:
    """Of some pairs: shards.Report, (width, height) of each image, its caption, and how many captions have no noun."""

    report: shards.Report
    sizes: list
    captions: list
    without_nouns: int


def count_pairs(paths, limit):
    """PairCounts of at most `limit` pairs, the first ones of shards evenly spread; 0: all."""
    some = paths[:: math.ceil(len(paths) / limit)] if limit else paths
    each = math.ceil(limit / len(some)) if limit else None
    counts = PairCounts(shards.Report(), [], [], 0)
    for path in tqdm(some, "pairs", mininterval=2, leave=False, disable=None):
        for _, image, caption in islice(shards.pairs(path, counts.report), each):
            counts.sizes.append(image.size)
            counts.captions.append(caption)
            counts.without_nouns += not captions.nouns(caption)
    return counts


def check_pairs(counts, max_bad_fraction):
    """What is wrong, or looks so, with pairs: a list of sentences."""
    found, pairs = [], len(counts.captions)
    if counts.report.bad_fraction > max_bad_fraction:
        allowed = f"data.max_bad_fraction allows {max_bad_fraction:.1%}"
        found.append(f"{counts.report.bad_fraction:.1%} of the samples cannot be used: {allowed}")
    if pairs and len(set(counts.captions)) < MANY * pairs:
        found.append(f"{pairs - len(set(counts.captions)):,} of {pairs:,} captions are repeated: a caption should tell of its image")
    if counts.without_nouns > MANY * pairs:
        found.append(f"{counts.without_nouns:,} of {pairs:,} captions have no English noun: prompts are made of nouns")
    return found


def describe_pairs(paths, counts):
    """The text of pairs: shards, what was skipped and repaired, sizes, captions."""
    lines = [f"pairs: {len(counts.captions):,} looked at, in {len(paths):,} shards, the first {paths[0]}"]
    for what, kinds in {"skipped": counts.report.skipped, "repaired": counts.report.repaired}.items():
        lines += [f"{what}: {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}"] if kinds else []
    if counts.captions:
        words = sorted(len(caption.split()) for caption in counts.captions)
        lines.append(f"sizes: {_sizes(counts.sizes)}")
        lines.append(f"words in a caption: {words[0]} to {words[-1]}, median {median(words):g}")
        lines.append(f"{len(set(counts.captions)):,} distinct captions, {counts.without_nouns:,} without a noun")
        lines += [f"“{caption}”" for caption in counts.captions[:3]]
    return "\n  ".join(lines)


def _sizes(sizes):
    """(width, height) of pictures in words."""
    (smallest, largest), middle = (pick(sizes, key=math.prod) for pick in (min, max)), sorted(sizes, key=math.prod)[len(sizes) // 2]
    if smallest == largest:
        return f"{smallest[0]}x{smallest[1]}"
    return f"{smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}, median {middle[0]}x{middle[1]}"
