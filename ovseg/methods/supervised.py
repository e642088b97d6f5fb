"""The supervised reference: the same decoder, trained on label maps of the training pairs. No other method reads these.

It measures what these frozen features and a decoder of this size can achieve; the report's "gap closed" is the share of it that
training on texts reaches. supervised.labels names a benchmark in shards; label maps use its file extension and classes.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..clip.blocks import open_checked
from ..data import shards
from ..data.images import label_map
from . import distributed

IGNORED = 255


class Source(NamedTuple):
    """Location of label maps: their file extension in the training shards, whether label 0 is the background, and the
    file of the benchmark's class embeddings (C, d), unit length, written by `encode`."""

    extension: str
    background: bool
    class_file: str


class Labels(NamedTuple):
    """Labels of N training pairs, one per pixel embedding."""

    maps: np.ndarray  # (N, h, w) uint8, indices into classes, IGNORED where no class has a text
    classes: torch.Tensor  # (C, d), unit length


def open_labels(source, paths, keys, size):
    """Read the Labels of pairs from shards. paths: shard paths; keys: keys of the pairs; size: pixel embeddings per side.

    A label map is cropped like its image, and each embedding gets the label at the centre of its cell. EXIF rotation is not applied
    to label maps: they must match the upright image. Raises ValueError if a sample has no label map, if a label has no class, or
    if a key has no sample.
    """
    classes = torch.from_numpy(np.array(open_checked(source.class_file)))
    rows, maps = {key: row for row, key in enumerate(keys)}, np.full((len(keys), size, size), IGNORED, np.uint8)
    for path in paths:
        for sample in shards.read_samples(path):
            key = f"{Path(path).stem}/{sample['__key__']}"
            if key not in rows:
                continue
            found = _read(sample, key, source.extension, size)
            known = found[found != IGNORED]
            if known.size and known.max() >= len(classes) + source.background:
                raise ValueError(f"{key}: its label map holds {known.max()}; allowed are 0..{len(classes) + source.background - 1}")
            if source.background:
                found = np.where((found == 0) | (found == IGNORED), IGNORED, found - 1)
            maps[rows.pop(key)] = found
    if rows:
        raise ValueError(f"{next(iter(rows))}: the shards have changed since `prepare` read them; run it again")
    return Labels(maps, classes)


def _read(sample, key, extension, size):
    """Read the label map of a raw sample, cropped and resized: (size, size)."""
    if extension not in sample:
        raise ValueError(f"{key} has no {extension}: supervised.labels has to name label maps that all training pairs have")
    try:
        with Image.open(io.BytesIO(sample[extension])) as labels:
            label_map(labels)  # raises if the image holds no indices
            side = min(labels.size)
            left, top = ((extent - side) / 2 for extent in labels.size)
            return np.array(labels.resize((size, size), Image.Resampling.NEAREST, (left, top, left + side, top + side)))
    except Exception as error:  # decoders raise many kinds of error on corrupt bytes
        raise ValueError(f"{key}: {extension}: {error}") from None


class Objective(nn.Module):
    """The loss as a training objective (see objectives.py). settings: schema.Supervised. It has no parameters."""

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings

    def forward(self, batch, stages, decoder):
        pixels = stages[-1].flatten(2).transpose(1, 2)
        return losses(pixels, batch.labels.flatten(1), batch.classes, self.settings.tau, batch.world)


def losses(pixels, labels, classes, tau, world=distributed.World()):  # noqa: B008 (frozen)
    """Cross-entropy of cos(V[p], class) / tau, averaged over the labelled pixels of each image, then over images: {"label": scalar}.

    pixels (b, L, d), labels (b, L) int64: this process' share of the batch. classes: (C, d), unit length.
    """
    logits = F.normalize(pixels, dim=-1) @ classes.T / tau  # b, L, C
    by_pixel = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # b, L
    labelled = (labels != IGNORED).sum(1).clamp(min=1)
    return {"label": world.gather(by_pixel.sum(1) / labelled).mean()}
