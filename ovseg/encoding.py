"""Encoding once what training and evaluation read again and again: texts, training images, benchmark windows."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import shards
from .clip import DENSE
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
        raise ValueError(f"{len(keys) - row} pairs are missing: the shards have changed since `prepare` read them; run it again")
    out.flush()


def encode_benchmarks(clip, benchmarks, segment, folder, images=True):
    """Encode of each benchmark the class names and, if asked, the windows in both ways of clip.DENSE. segment: params.Segment.

    Benchmarks over the same pictures (things and scenes; VOC 21 and VOC20) are encoded once and share their files.
    """
    done = {}
    for benchmark in benchmarks:
        here = Path(folder) / benchmark.name
        here.mkdir(parents=True, exist_ok=True)
        np.save(here / "classes.npy", clip.embed_classes(benchmark.named, segment.templates).cpu().numpy())
        if images and benchmark.source in done:
            for way in DENSE:
                (here / f"{way}.npy").unlink(missing_ok=True)
                os.link(done[benchmark.source] / f"{way}.npy", here / f"{way}.npy")
        elif images:
            encode_windows(clip, benchmark, segment, here)
            done[benchmark.source] = here


def encode_windows(clip, benchmark, segment, folder):
    """Encode the windows of a benchmark's pictures, in order, into clip.npy and maskclip.npy."""
    total = sum(len(layout(image.height, image.width, segment).positions) for _, image, _ in benchmark)
    side = segment.window // clip.patch
    out = {way: create(Path(folder) / f"{way}.npy", (total, clip.width, side, side)) for way in DENSE}
    row, batch = 0, []
    for _, image, _ in tqdm(benchmark, f"encode {benchmark.name}", mininterval=2):
        batch += list(cut(image, segment)[0])
        while len(batch) >= segment.batch or (batch and row + len(batch) == total):
            features = clip.encode_both(np.stack(batch[: segment.batch]))
            for way in DENSE:
                out[way][row : row + len(features[way])] = features[way].cpu().numpy()
            row, batch = row + len(batch[: segment.batch]), batch[segment.batch :]
    for array in out.values():
        array.flush()
