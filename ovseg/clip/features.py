"""The cache of what the frozen CLIP says: arrays on disk, float16, memory-mapped when read.

    train/texts.npy              (T, d)        every text of the bank
    train/pairs.npy              (N, d, h, w)  dense features of the training images, if they are cached
    benchmarks/NAME/classes.npy  (C, d)        class embeddings of benchmark NAME (float32, unit length)
    benchmarks/NAME/MODE.npy     (W, d, h, w)  dense features of the windows of its pictures, in order, in a mode of dense.DENSE_MODES

Embeddings of texts and dense features are not normalised. encoding.py fills it.
"""

from pathlib import Path

import numpy as np
import torch


def made_with(clip, segment):
    """The values that cached features of benchmarks depend on, {"section.key": value}. clip, segment: params.Clip, Segment."""
    values = {"clip": clip.model_dump(include={"model", "pretrained", "precision"})}
    values["segment"] = segment.model_dump(include={"short_side", "max_ratio", "window", "stride", "templates"})
    return {f"{section}.{key}": value for section, part in values.items() for key, value in part.items()}


def open_cached(path):
    """A cached array, memory-mapped, or None if it was not cached."""
    return np.load(path, mmap_mode="r") if Path(path).is_file() else None


def as_tensor(array, device="cpu"):
    """Rows of a cached array as a float32 tensor."""
    return torch.from_numpy(np.array(array)).to(device).float()


def create_cached(path, shape):
    """A new array of that shape on disk, memory-mapped for writing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # rather than write through a link that other benchmarks share
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
