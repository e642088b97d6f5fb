"""Encoding the windows and class names of benchmarks once, for all evaluations."""

import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..clip.features import create_cached
from ..segmentation.windows import cut_windows, window_grid


def encode_benchmarks(clip, benchmarks, segment, folder, modes, made_with):
    """Encode of each benchmark the class names, and the windows in each of some modes to read dense features (dense.DENSE_MODES).

    segment: params.Segment. modes: empty if windows are not to be cached. Benchmarks over the same pictures (things and
    scenes; VOC 21 and VOC20) are encoded once and share their files. suite.json says which there were, what they
    were, and what all of it was made with (features.made_with).
    """
    done = {}
    for benchmark in benchmarks:
        here = Path(folder) / benchmark.name
        here.mkdir(parents=True, exist_ok=True)
        np.save(here / "classes.npy", clip.embed_classes(benchmark.named, segment.templates).cpu().numpy())
        if benchmark.source in done:
            for mode in modes:
                (here / f"{mode}.npy").unlink(missing_ok=True)
                os.link(done[benchmark.source] / f"{mode}.npy", here / f"{mode}.npy")
        elif modes:
            encode_windows(clip, benchmark, segment, here, modes)
            done[benchmark.source] = here
    suite = {"made_with": made_with, "benchmarks": {benchmark.name: benchmark.fingerprint for benchmark in benchmarks}}
    (Path(folder) / "suite.json").write_text(json.dumps(suite, indent=1) + "\n")


def encode_windows(clip, benchmark, segment, folder, modes):
    """Encode the windows of a benchmark's pictures, in order, into an array for each of the modes: clip.npy, maskclip.npy, ..."""
    total = sum(len(window_grid(image.height, image.width, segment).positions) for _, image, _ in benchmark)
    side = segment.window // clip.patch
    out = {mode: create_cached(Path(folder) / f"{mode}.npy", (total, clip.width, side, side)) for mode in modes}
    row, batch = 0, []
    for _, image, _ in tqdm(benchmark, f"encode {benchmark.name}", mininterval=2):
        batch += list(cut_windows(image, segment)[0])
        while len(batch) >= segment.batch or (batch and row + len(batch) == total):
            features = clip.encode_modes(np.stack(batch[: segment.batch]), modes)
            for mode in modes:
                out[mode][row : row + len(features[mode])] = features[mode].cpu().numpy()
            row, batch = row + len(batch[: segment.batch]), batch[segment.batch :]
    for array in out.values():
        array.flush()
