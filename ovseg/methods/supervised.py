"""The supervised ceiling: the same decoder, trained on label maps of the training pairs, which no other method reads.

It says how much the frozen features and a decoder of this size can give; what a training on texts reaches of it is the report's
"gap closed". The label maps are those of a benchmark (train.labels) whose kind the training shards hold as well.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..data import shards
from . import distributed

IGNORED = 255


class Source(NamedTuple):
    """Where label maps are: the extension that they have in the training shards, whether their label 0 is the background, and the
    file of class embeddings (C, d), unit length, that `encode` made for the benchmark."""

    extension: str
    background: bool
    classes: str


class Labels(NamedTuple):
    """What N training pairs show, pixel embedding by pixel embedding."""

    maps: np.ndarray  # (N, h, w) uint8, indices into classes, IGNORED where no class has a text
    classes: torch.Tensor  # (C, d), unit length


def open_labels(source, paths, keys, size):
    """The Labels of pairs, from their shards. paths: of the shards; keys: of the pairs; size: pixel embeddings a side.

    A label map is cropped as its image is, and each embedding gets the label at the middle of its square. Raises ValueError when a
    sample has no label map, or one that holds a label of no class.
    """
    classes = torch.from_numpy(np.load(source.classes))
    rows, maps = {key: row for row, key in enumerate(keys)}, np.empty((len(keys), size, size), np.uint8)
    for path in paths:
        for sample in shards.read_samples(path):
            key = f"{Path(path).stem}/{sample['__key__']}"
            if key not in rows:
                continue
            if source.extension not in sample:
                raise ValueError(f"{key} has no {source.extension}: train.labels has to name label maps that all training pairs have")
            labels = Image.open(io.BytesIO(sample[source.extension]))
            side = min(labels.size)
            left, top = ((extent - side) / 2 for extent in labels.size)
            found = np.array(labels.resize((size, size), Image.Resampling.NEAREST, (left, top, left + side, top + side)))
            known = found[found != IGNORED]
            if known.size and known.max() >= len(classes) + source.background:
                raise ValueError(f"{key}: its label map holds {known.max()}; allowed are 0..{len(classes) + source.background - 1}")
            if source.background:
                found = np.where((found == 0) | (found == IGNORED), IGNORED, found - 1)
            maps[rows[key]] = found
    return Labels(maps, classes)


def losses(pixels, labels, classes, tau, world=distributed.World()):  # noqa: B008 (frozen)
    """{"label": scalar}: cross-entropy of cos(V[p], class) / tau, its mean over the labelled pixels of an image, then over images.

    pixels (b, L, d), labels (b, L) int64: those of this process' images, its share of the batch. classes (C, d), unit length.
    """
    logits = F.normalize(pixels, dim=-1) @ classes.T / tau  # b, L, C
    by_pixel = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # b, L
    labelled = (labels != IGNORED).sum(1).clamp(min=1)
    return {"label": world.gather(by_pixel.sum(1) / labelled).mean()}
