"""Encoding once what training and evaluation read again and again: texts and training images."""

import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import shards
from ..data.images import center_crop
from .features import create_cached


def encode_texts(clip, texts, folder):
    """Encode a bank's texts, of which no more than a batch is held, into texts.npy."""
    out = create_cached(Path(folder) / "texts.npy", (len(texts), clip.width))
    step = 4096
    for start in tqdm(range(0, len(texts), step), "encode texts", mininterval=2):
        out[start : start + step] = clip.encode_text(texts[start : start + step]).cpu().numpy()
    out.flush()


def encode_pairs(clip, paths, keys, settings, folder):
    """Encode the training images into pairs.npy, row n that of keys[n]. settings: params.Clip. Raises ValueError at other pairs."""
    side = settings.image_size // clip.patch
    out = create_cached(Path(folder) / "pairs.npy", (len(keys), clip.width, side, side))
    report = shards.Report()
    found = itertools.chain.from_iterable(shards.pairs(path, report) for path in paths)
    batch = []
    for row, (wanted, pair) in enumerate(itertools.zip_longest(tqdm(keys, "encode images", mininterval=2), found), 1):
        if pair is None or pair[0] != wanted:
            raise ValueError(f"{wanted or pair[0]}: the shards have changed since `prepare` read them; run it again")
        batch.append(center_crop(pair[1], settings.image_size))
        if len(batch) == settings.batch or row == len(keys):
            out[row - len(batch) : row] = clip.encode_dense(np.stack(batch)).cpu().numpy()
            batch = []
    out.flush()
