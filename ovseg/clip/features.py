"""The cache of what the frozen CLIP says: arrays on disk, float16, memory-mapped when read.

    train/texts.npy              (T, d)        every text of the bank
    train/pairs.npy              (N, d, h, w)  dense features of the training images, if they are cached
    benchmarks/NAME/classes.npy  (C, d)        class embeddings of benchmark NAME (float32, unit length)
    benchmarks/NAME/MODE.npy     (W, d, h, w)  dense features of the windows of its pictures, in order, in a mode of dense.DENSE_MODES

Embeddings of texts and dense features are not normalised. encoding.py fills it; beside each array lies what it was made from (blocks.py).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from .blocks import open_checked


def made_with(clip, segment):
    """The values that cached features of benchmarks depend on, {"section.key": value}. clip, segment: params.Clip, Segment."""
    values = {"clip": clip.model_dump(include={"model", "pretrained", "positions", "precision"})}
    values["segment"] = segment.model_dump(include={"short_side", "max_ratio", "resize", "window", "stride", "templates"})
    return {f"{section}.{key}": value for section, part in values.items() for key, value in part.items()}


def fingerprint(*parts):
    """One hash, in hex, of what an array depends on. parts: what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_cached(path):
    """A cached array, memory-mapped, or None if it was not cached. Raises ValueError that names it if the file is damaged."""
    return open_checked(path) if Path(path).is_file() else None


def as_tensor(array, device="cpu"):
    """Rows of a cached array as a float32 tensor."""
    return torch.from_numpy(np.array(array)).to(device).float()
