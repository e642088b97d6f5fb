"""Encodes the class names and windows of benchmarks once, for all evaluations."""

import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..clip.encode import ArrayWriter, files_digest, stacks
from ..data import images, shards
from ..data.files import check_space, source_digest
from ..segmentation import resizing, windows
from ..segmentation.names import all_names
from . import datasets


def encode_benchmarks(clip, benchmarks, segment, folder, modes):
    """Encode the class names of each benchmark into NAME/classes.npy, and its windows in each mode into NAME/MODE.npy. segment:
    schema.Segment. modes: of dense.DENSE_MODES; none if windows are not cached. Windows of benchmarks with the same pictures (things
    and scenes; VOC 21 and VOC20) are stored once, in the folder of the first of them. Other files in the folder are deleted."""
    folder, places = Path(folder), {}  # places: {source: folder of its windows}
    for benchmark in benchmarks:
        place, names = folder / benchmark.name, all_names(benchmark.texts)
        made_with = {"clip": clip.fingerprint, "templates": segment.templates}
        made_with |= {"classes": [*benchmark.classes[: benchmark.background], *benchmark.texts]}
        made_with |= {"label": getattr(benchmark, "label", None), "files": files_digest([*benchmark.files, *benchmark.label_files])}
        classes = ArrayWriter(place / "classes.npy", (clip.width,), made_with, len(names), np.float32)
        if not classes.rows:
            classes.append(clip.embed_classes(names, segment.templates))
        classes.finish()
        if places.setdefault(benchmark.source, place) == place:
            encode_windows(clip, benchmark, segment, place, modes)
    arrays = {folder / benchmark.name / "classes" for benchmark in benchmarks}
    arrays |= {place / mode for place in places.values() for mode in modes}
    for path in folder.glob("*/*"):
        if path.with_suffix("") not in arrays:
            path.unlink()


def encode_windows(clip, benchmark, segment, folder, modes):
    """Encode the windows of a benchmark's pictures in each mode into MODE.npy; no picture is read if all are complete."""
    made_with = segment.model_dump(include={"short_side", "max_ratio", "resize", "window", "stride", "batch"}) | {"clip": clip.fingerprint}
    made_with |= {"code": source_digest(datasets, images, resizing, shards, windows), "pictures": files_digest(benchmark.files)}
    row_of = (clip.width, segment.window // clip.patch, segment.window // clip.patch)
    outs = {mode: ArrayWriter(folder / f"{mode}.npy", row_of, made_with | {"dense": mode}, segment.batch) for mode in modes}
    outs = {mode: out for mode, out in outs.items() if not out.complete}
    row = min((out.rows for out in outs.values()), default=0)
    if outs:  # the number of windows is that of about 50 pictures, scaled
        some = [windows.window_grid(image.height, image.width, segment) for _, image, _ in benchmark.samples(max(1, len(benchmark) // 50))]
        total = sum(len(where.positions) for where in some) * len(benchmark) / len(some)
        check_space(folder, sum((total - out.rows) * out.row_bytes for out in outs.values()))
    pictures = tqdm(benchmark, f"encode {benchmark.name}", mininterval=2) if outs else ()
    cut = (window for _, image, _ in pictures for window in windows.cut_windows(image, segment)[0])
    for stack in stacks(itertools.islice(cut, row, None), segment.batch):
        for mode, features in clip.encode_modes(stack, outs).items():
            if outs[mode].rows == row:  # a killed run may have written more rows of one mode than of another
                outs[mode].append(features)
        row += len(stack)
    for out in outs.values():
        out.finish()
