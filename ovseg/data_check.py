"""Check data before a study: reports, lists of lines. A line "warning: ..." says what is wrong, "note: ..." what may be wrong."""

import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from . import params
from .benchmarks import datasets
from .benchmarks.notes import Notes
from .data import shards
from .data.images import some


def print_reports(folders, limit):
    """Print reports on folders as benchmarks, or without folders on the data of params.yaml. Returns whether there is a warning.
    limit: maximum number of pairs, and of pictures per benchmark; 0: all."""
    benchmarks = [datasets.FolderBenchmark(Path(folder).resolve().name, folder) for folder in folders]
    warned = False
    for lines in (check_benchmark(benchmark, limit) for benchmark in benchmarks) if folders else check_study(limit):
        encoding = sys.stdout.encoding or "utf-8"  # which may lack characters of the names
        print("\n  ".join(lines).encode(encoding, "backslashreplace").decode(encoding), end="\n\n")
        warned |= any(line.startswith("warning: ") for line in lines)
    return warned


def check_study(limit):
    """Yields a report on the pairs and on each benchmark of params.yaml, calibration pictures included."""
    params.enter_project()
    p = params.load()
    try:
        yield check_pairs(shards.expand(p.data.shards or "data/prepared/scenes/train-*.tar"), p.data.max_bad_fraction, limit)
    except FileNotFoundError as error:
        yield ["pairs", f"warning: {error}" + ("" if p.data.shards else "; `dvc repro scenes` renders them")]
    for name, settings in p.benchmarks.items():
        splits = {name: "evaluated"} | ({f"{name}, calibration": "calibration"} if settings.calibration else {})
        for title, split in splits.items():
            try:
                yield check_benchmark(datasets.open_benchmark(title, settings, split), limit)
            except (OSError, ValueError) as error:
                skipped = settings.optional and isinstance(error, datasets.NotHere)
                yield [f"benchmark {title}", f"{'note: skipped, because it is optional' if skipped else 'warning'}: {error}"]


def check_pairs(paths, max_bad_fraction, limit=0):
    """A report on image-text pairs. paths: of all shards. limit: of pairs, the first ones of evenly spread shards."""
    some = paths[:: max(1, math.ceil(len(paths) / (limit or math.inf)))]
    each = limit // len(some) if limit else None
    counts, sizes = shards.Report(), []
    for path in tqdm(some, "pairs", mininterval=2, leave=False, disable=None):
        sizes += [image.size for _, image, _ in islice(shards.read_pairs(path, counts), each)]
    lines = [f"pairs: {len(sizes):,} in {len(some):,} of {len(paths):,} shards", *_sizes(sizes)]
    lines += [f"skipped: {count:,} {kind}" for kind, count in counts.skipped.most_common()]
    lines += [f"repaired: {count:,} {kind}" for kind, count in counts.repaired.most_common()]
    if counts.bad_fraction > max_bad_fraction:
        lines.append(f"warning: {counts.bad_fraction:.1%} of the samples cannot be used; max_bad_fraction is {max_bad_fraction:.1%}")
    lines += ["warning: shards end early or cannot be read"] * bool(counts.skipped["truncated tar"])
    lines += _warning("shards with the same name", [n for n, count in Counter(Path(path).stem for path in paths).items() if count > 1])
    return lines if sizes else [*lines, "warning: no usable pair"]


def check_benchmark(benchmark, limit=0):
    """A report on a benchmark: sizes, and how often each label id occurs in its files. limit: of pictures, evenly spread."""
    sizes, pixels, pictures, first, broken, notes = [], Counter(), Counter(), {}, [], Notes(benchmark)
    step = max(1, math.ceil(len(benchmark) / (limit or math.inf)))
    samples = benchmark.samples(step, lambda error: broken.append(str(error)))
    for key, image, stored in tqdm(samples, benchmark.name, math.ceil(len(benchmark) / step), mininterval=2, leave=False, disable=None):
        sizes.append(image.size)
        ids, counts = np.unique(stored, return_counts=True)
        if wrong := notes.add(key, image, stored, ids):
            broken.append(wrong)
        pixels.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        pictures.update(ids.tolist())
        first = dict.fromkeys(ids.tolist(), key) | first
    classes = dict(enumerate(benchmark.classes))
    indices = {label: benchmark.decoded(np.array(label)).item() for label in sorted(pixels)}
    names = {label: (classes | {benchmark.ignored: "(ignored)"}).get(index, "(no class)") for label, index in indices.items()}
    rows = [[label, names[label], 100 * pixels[label] / pixels.total(), pictures[label]] for label in indices]
    lines = [f"benchmark {benchmark.name}: {len(sizes):,} of {len(benchmark):,} pictures, {len(classes)} classes", *_sizes(sizes)]
    lines += tabulate(rows, ["id", "class", "% of pixels", "pictures"], floatfmt=".2f").splitlines()
    absent = [name for index, name in classes.items() if index not in indices.values()]
    unknown = [label for label in indices if names[label] == "(no class)"]
    lines += [f"in no picture: {', '.join(absent)}"] * bool(absent)
    lines += _warning("unreadable files, or label maps of another size", broken)
    lines += _warning("ids without a class", [f"{label} (first in {first[label]})" for label in unknown])
    if [indices[label] for label in unknown] == [len(classes)]:
        lines.append(f"note: id {unknown[0]} is one above the last class: are all ids one too high?")
    lines += [f"note: {line}" for line in notes.lines()]
    return lines if sizes else [*lines, "warning: no usable picture"]


def _sizes(sizes):
    """A line with the smallest, largest and median (width, height), by area; no line without sizes."""
    ordered = [f"{width}x{height}" for width, height in sorted(sizes, key=lambda size: (math.prod(size), size))]
    return [f"sizes: {ordered[0]} to {ordered[-1]}, median {ordered[len(ordered) // 2]}"] if ordered else []


def _warning(what, items):
    """A warning that names the first items; no line without items."""
    return [f"warning: {what}: {some(items)}"] if items else []
