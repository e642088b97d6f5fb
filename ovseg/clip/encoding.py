"""Encoding once what training and evaluation read again and again: texts and training images."""

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
    """Encode the training images into pairs.npy, row n that of keys[n]. settings: params.Clip."""
    side = settings.image_size // clip.patch
    out = create_cached(Path(folder) / "pairs.npy", (len(keys), clip.width, side, side))
    row, batch, wanted = 0, [], iter(keys)
    report = shards.Report()
    found = (pair for path in paths for pair in shards.pairs(path, report))
    for key, image, _ in tqdm(found, "encode images", len(keys), mininterval=2):
        if key != next(wanted, None):
            raise ValueError(f"{key}: the shards have changed since `prepare` read them; run it again")
        batch.append(center_crop(image, settings.image_size))
        if len(batch) == settings.batch or row + len(batch) == len(keys):
            out[row : row + len(batch)] = clip.encode_dense(np.stack(batch)).cpu().numpy()
            row, batch = row + len(batch), []
    if row != len(keys):
        raise ValueError(
            f"{len(keys) - row - len(batch)} pairs are missing: the shards have changed since `prepare` read them; run it again"
        )
    out.flush()
