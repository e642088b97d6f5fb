"""Encode the windows and class names of benchmarks once, for all evaluations.

An interrupted run resumes after its last block. Finished arrays are kept as long as nothing they depend on has changed
(clip/blocks.py), so adding a benchmark encodes only that benchmark.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..clip.blocks import Blocks, check_space_for, discard, kept_shape, log_of
from ..clip.dense import DENSE_MODES
from ..clip.features import fingerprint
from ..data import files, images, shards
from ..segmentation import resizing, windows
from ..segmentation.windows import cut_windows, window_grid
from . import datasets, layouts


def encode_benchmarks(clip, benchmarks, segment, folder, modes, made_with):
    """Encode the class names of each benchmark, and its windows in each of the given dense modes (dense.DENSE_MODES).

    segment: params.Segment. modes: empty if windows are not cached. Benchmarks over the same pictures (things and scenes;
    VOC 21 and VOC20) are encoded once and share their files. suite.json lists the benchmarks with their fingerprints and the
    settings used (features.made_with). Files of other benchmarks and modes in the folder are deleted.
    """
    folder, modes = Path(folder), tuple(modes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.json").unlink(missing_ok=True)  # until everything it lists exists
    for other in folder.iterdir():
        if other.is_dir() and other.name not in {benchmark.name for benchmark in benchmarks}:
            shutil.rmtree(other)
    by_source = {}
    for benchmark in benchmarks:
        encode_classes(clip, benchmark, segment.templates, folder / benchmark.name)
        by_source.setdefault(benchmark.source, []).append(benchmark)
        for mode in set(DENSE_MODES) - set(modes):
            discard(folder / benchmark.name / f"{mode}.npy")
    for group in by_source.values() if modes else ():
        mark, places = fingerprint_of_windows(clip, group[0], segment), [folder / benchmark.name for benchmark in group]
        here = next((place for place in places if kept_shape(place / f"{modes[0]}.npy", mark)), places[0])
        encode_windows(clip, group[0], segment, here, modes, mark)
        for place in places:
            for mode in modes if place != here else ():
                share(here / f"{mode}.npy", place / f"{mode}.npy")
    suite = {"made_with": made_with, "benchmarks": {benchmark.name: benchmark.fingerprint for benchmark in benchmarks}}
    files.write_whole(folder / "suite.json", lambda part: part.write_text(json.dumps(suite, indent=1) + "\n"))


def encode_classes(clip, benchmark, templates, folder):
    """Encode the class names, except the background, into classes.npy."""
    mark = fingerprint(clip.fingerprint, benchmark.named, templates)
    out = Blocks(folder / "classes.npy", (len(benchmark.named), clip.width), len(benchmark.named), mark, np.float32)
    for block in out.missing:
        out.write(block, clip.embed_classes(benchmark.named, templates).cpu().numpy())
    out.finish()


def fingerprint_of_windows(clip, benchmark, segment):
    """A fingerprint of what the windows' features depend on: CLIP, the contents of the pictures, and the code that reads and cuts them."""
    values = segment.model_dump(include={"short_side", "max_ratio", "resize", "window", "stride", "batch"})
    read = files.code(__file__, *(module.__file__ for module in (datasets, layouts, images, shards, resizing, windows)))
    return fingerprint(clip.fingerprint, benchmark.contents, values, read)


def encode_windows(clip, benchmark, segment, folder, modes, mark):
    """Encode the windows of a benchmark's pictures, in order, into an array for each of the modes: clip.npy, maskclip.npy, ...

    mark: from `fingerprint_of_windows`.
    """
    known, side = kept_shape(folder / f"{modes[0]}.npy", mark), segment.window // clip.patch
    total = known[0] if known else sum(len(window_grid(i.height, i.width, segment).positions) for _, i, _ in benchmark)
    out = {mode: Blocks(folder / f"{mode}.npy", (total, clip.width, side, side), segment.batch, mark) for mode in modes}
    check_space_for(list(out.values()))
    wanted = np.logical_or.reduce([array.wanted() for array in out.values()])
    row, batch = 0, []
    for _, image, _ in tqdm(benchmark, f"encode {benchmark.name}", mininterval=2) if wanted.any() else ():
        count = len(window_grid(image.height, image.width, segment).positions)
        cut = cut_windows(image, segment)[0] if wanted[row : row + count].any() else ()
        for window in cut:
            if wanted[row]:
                batch.append(window)
            row += 1
            if batch and (row % segment.batch == 0 or row == total):
                _write(clip, out, (row - 1) // segment.batch, batch)
                batch = []
        row += count - len(cut)
    for array in out.values():
        array.finish()


def _write(clip, out, block, batch):
    """Encode a block of windows in the modes whose arrays do not have it yet."""
    modes = [mode for mode, array in out.items() if block not in array.sums]
    for mode, found in clip.encode_modes(np.stack(batch), modes).items():
        out[mode].write(block, found.cpu().numpy())


def share(source, target):
    """Hard-link the array at source, and its list of blocks, to target."""
    for file, link in ((source, target), (log_of(source), log_of(target))):
        if link.is_file() and os.path.samefile(file, link):
            continue
        discard(link) if link == target else link.unlink(missing_ok=True)
        os.link(file, link)
