"""The cache of the frozen CLIP's features: arrays on disk, float16 unless noted, memory-mapped when read.

    train/texts.npy              (T, d)        every text of the bank
    train/pairs.npy              (N, d, h, w)  dense features of the training images, if they are cached
    benchmarks/NAME/classes.npy  (C, d)        class embeddings of benchmark NAME (float32, unit length)
    benchmarks/NAME/MODE.npy     (W, d, h, w)  dense features of the windows of its images, in order; MODE is one of dense.DENSE_MODES

Text embeddings and dense features are not normalised. encoding.py fills the cache; blocks.py stores a fingerprint with each array.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from .blocks import open_checked


def made_with(clip, segment):
    """Parameters that the cached features of benchmarks depend on, {"section.key": value}. clip, segment: schema.Clip, schema.Segment."""
    values = {"clip": clip.model_dump(include={"model", "pretrained", "positions", "precision"})}
    values["segment"] = segment.model_dump(include={"short_side", "max_ratio", "resize", "window", "stride", "templates"})
    return {f"{section}.{key}": value for section, part in values.items() for key, value in part.items()}


def fingerprint(*parts):
    """Hex digest of all that an array depends on. parts: JSON-serialisable values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_cached(path):
    """Open a cached array, memory-mapped, or return None if it is not cached. Raises ValueError with its path if it is damaged."""
    return open_checked(path) if Path(path).is_file() else None


def as_tensor(array, device="cpu"):
    """Rows of a cached array as a float32 tensor."""
    return torch.from_numpy(np.array(array)).to(device).float()
