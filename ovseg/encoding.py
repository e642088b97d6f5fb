"""Encoding once what training and evaluation read again and again: texts, training images, benchmark windows."""

import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import shards
from .features import create
from .images import square
from .segmenter import cut, layout


def encode_texts(clip, texts, folder):
    """Encode a bank's texts, of which no more than a batch is held, into texts.npy."""
    out = create(Path(folder) / "texts.npy", (len(texts), clip.width))
    step = 4096
    for start in tqdm(range(0, len(texts), step), "encode texts", mininterval=2):
        out[start : start + step] = clip.encode_text(texts[start : start + step]).cpu().numpy()
    out.flush()


def encode_pairs(clip, paths, keys, settings, folder):
    """Encode the training images into pairs.npy, row n that of keys[n]. settings: params.Clip."""
    side = settings.image_size // clip.patch
    out = create(Path(folder) / "pairs.npy", (len(keys), clip.width, side, side))
    row, batch, wanted = 0, [], iter(keys)
    report = shards.Report()
    found = (pair for path in paths for pair in shards.pairs(path, report))
    for key, image, _ in tqdm(found, "encode images", len(keys), mininterval=2):
        if key != next(wanted, None):
            raise ValueError(f"{key}: the shards have changed since `prepare` read them; run it again")
        batch.append(square(image, settings.image_size))
        if len(batch) == settings.batch or row + len(batch) == len(keys):
            out[row : row + len(batch)] = clip.encode_dense(np.stack(batch)).cpu().numpy()
            row, batch = row + len(batch), []
    if row != len(keys):
        raise ValueError(
            f"{len(keys) - row - len(batch)} pairs are missing: the shards have changed since `prepare` read them; run it again"
        )
    out.flush()


def encode_benchmarks(clip, benchmarks, segment, folder, ways, made_with):
    """Encode of each benchmark the class names, and the windows in each of some ways to read dense features (dense.WAYS).

    segment: params.Segment. ways: empty if windows are not to be cached. Benchmarks over the same pictures (things and
    scenes; VOC 21 and VOC20) are encoded once and share their files. suite.json says which there were, what they
    were, and what all of it was made with (features.made_with).
    """
    done = {}
    for benchmark in benchmarks:
        here = Path(folder) / benchmark.name
        here.mkdir(parents=True, exist_ok=True)
        np.save(here / "classes.npy", clip.embed_classes(benchmark.named, segment.templates).cpu().numpy())
        if benchmark.source in done:
            for way in ways:
                (here / f"{way}.npy").unlink(missing_ok=True)
                os.link(done[benchmark.source] / f"{way}.npy", here / f"{way}.npy")
        elif ways:
            encode_windows(clip, benchmark, segment, here, ways)
            done[benchmark.source] = here
    suite = {"made_with": made_with, "benchmarks": {benchmark.name: benchmark.fingerprint for benchmark in benchmarks}}
    (Path(folder) / "suite.json").write_text(json.dumps(suite, indent=1) + "\n")


def encode_windows(clip, benchmark, segment, folder, ways):
    """Encode the windows of a benchmark's pictures, in order, into an array for each of the ways: clip.npy, maskclip.npy, ..."""
    total = sum(len(layout(image.height, image.width, segment).positions) for _, image, _ in benchmark)
    side = segment.window // clip.patch
    out = {way: create(Path(folder) / f"{way}.npy", (total, clip.width, side, side)) for way in ways}
    row, batch = 0, []
    for _, image, _ in tqdm(benchmark, f"encode {benchmark.name}", mininterval=2):
        batch += list(cut(image, segment)[0])
        while len(batch) >= segment.batch or (batch and row + len(batch) == total):
            features = clip.encode_ways(np.stack(batch[: segment.batch]), ways)
            for way in ways:
                out[way][row : row + len(features[way])] = features[way].cpu().numpy()
            row, batch = row + len(batch[: segment.batch]), batch[segment.batch :]
    for array in out.values():
        array.flush()
