"""Encodes texts and training images once, for repeated use in training and evaluation.

Arrays are filled block by block. A killed run resumes after its last block, and later runs reuse finished arrays unless something that
they depend on has changed: the CLIP, the code, or the contents of texts and shards.
"""

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import files, images, shards
from ..data.images import center_crop
from .blocks import Blocks, check_space_for, discard
from .features import fingerprint

TEXTS = 4096  # texts per block


def encode_texts(clip, texts, folder):
    """Encode a bank's texts into texts.npy. At most one block of texts is in memory at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(texts), TEXTS):
        digest.update("\n".join([*texts[start : start + TEXTS], ""]).encode())
    out = Blocks(Path(folder) / "texts.npy", (len(texts), clip.width), TEXTS, fingerprint(clip.fingerprint, digest.hexdigest()))
    check_space_for([out])
    for block in tqdm(out.missing, "encode texts", mininterval=2):
        out.write(block, clip.encode_text(texts[out.rows_of(block)]).cpu().numpy())
    out.finish()


def encode_pairs(clip, paths, keys, settings, folder):
    """Encode the training images into pairs.npy, row n that of keys[n]. settings: schema.Clip. Raises ValueError at other pairs.

    Fully encoded shards are not decoded again. Raises ValueError if the shards do not hold the pairs in keys.
    """
    side = settings.image_size // clip.patch
    read = files.code(shards.__file__, images.__file__)
    contents = [[Path(path).stem, files.checksum(path)] for path in paths]
    named = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    mark = fingerprint(clip.fingerprint, clip.dense, settings.image_size, read, contents, named)
    out = Blocks(Path(folder) / "pairs.npy", (len(keys), clip.width, side, side), settings.batch, mark)
    check_space_for([out])
    wanted, batch = out.wanted(), []
    progress = tqdm(total=len(keys), initial=len(keys) - int(wanted.sum()), desc="encode images", mininterval=2)
    for row, image in _wanted(paths, keys, wanted):
        batch.append(center_crop(image, settings.image_size))
        block = row // settings.batch
        if row + 1 == out.rows_of(block).stop:
            out.write(block, clip.encode_dense(np.stack(batch)).cpu().numpy())
            progress.update(len(batch))
            batch = []
    progress.close()
    out.finish()


def discard_pairs(folder):
    """Delete pairs.npy. Used when images are encoded at each training step."""
    discard(Path(folder) / "pairs.npy")


def _wanted(paths, keys, wanted):
    """Yield (row, PIL image) of the wanted pairs, in order. wanted: (N,) bool. Raises ValueError if the shards hold other pairs."""
    of_shard, row = Counter(key.split("/")[0] for key in keys), 0
    for path in paths:
        end = row + of_shard[Path(path).stem]
        if row < end and not wanted[row:end].any():
            row = end
            continue
        for pair, key in itertools.zip_longest(shards.pairs(path, shards.Report()), keys[row:end]):
            if pair is None or pair[0] != key:
                raise _changed(key or pair[0])
            if wanted[row]:
                yield row, pair[1]
            row += 1
    if row < len(keys):
        raise _changed(keys[row])


def _changed(key):
    return ValueError(f"{key}: the shards have changed since `prepare` read them; run it again")
