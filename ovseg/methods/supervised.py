"""The supervised reference: the same decoder, trained on label maps of the training pairs, which no other method reads.

It says how much the frozen features and a decoder of this size can give; what a training on texts reaches of it is the report's
"gap closed". supervised.labels names a benchmark in shards: the label maps have the same extension as the benchmark's, and its classes.
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
    """Where label maps are: the extension that they have in the training shards, whether their label 0 is the background, and the
    file of class embeddings (C, d), unit length, that `encode` made for the benchmark."""

    extension: str
    background: bool
    class_file: str


class Labels(NamedTuple):
    """What N training pairs show, pixel embedding by pixel embedding."""

    maps: np.ndarray  # (N, h, w) uint8, indices into classes, IGNORED where no class has a text
    classes: torch.Tensor  # (C, d), unit length


def open_labels(source, paths, keys, size):
    """The Labels of pairs, from their shards. paths: of the shards; keys: of the pairs; size: pixel embeddings a side.

    A label map is cropped as its image is, and each embedding gets the label at the middle of its square. Raises ValueError when a
    sample has no label map, or one that holds a label of no class, or when there is no sample of a key. A label map is taken as it is
    stored: it has to lie as its image does once that is upright.
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
    """The label map of a raw sample, cropped and resized: (size, size)."""
    if extension not in sample:
        raise ValueError(f"{key} has no {extension}: supervised.labels has to name label maps that all training pairs have")
    try:
        with Image.open(io.BytesIO(sample[extension])) as labels:
            label_map(labels)  # refuses what holds no indices
            side = min(labels.size)
            left, top = ((extent - side) / 2 for extent in labels.size)
            return np.array(labels.resize((size, size), Image.Resampling.NEAREST, (left, top, left + side, top + side)))
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise ValueError(f"{key}: {extension}: {error}") from None


class Objective(nn.Module):
    """The loss as a method that a decoder is trained by (objectives.py). settings: params.Supervised. It has no parameters."""

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings

    def forward(self, batch, stages, decoder):
        pixels = stages[-1].flatten(2).transpose(1, 2)
        return losses(pixels, batch.labels.flatten(1), batch.classes, self.settings.tau, batch.world)


def losses(pixels, labels, classes, tau, world=distributed.World()):  # noqa: B008 (frozen)
    """{"label": scalar}: cross-entropy of cos(V[p], class) / tau, its mean over the labelled pixels of an image, then over images.

    pixels (b, L, d), labels (b, L) int64: those of this process' images, its share of the batch. classes (C, d), unit length.
    """
    logits = F.normalize(pixels, dim=-1) @ classes.T / tau  # b, L, C
    by_pixel = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # b, L
    labelled = (labels != IGNORED).sum(1).clamp(min=1)
    return {"label": world.gather(by_pixel.sum(1) / labelled).mean()}
