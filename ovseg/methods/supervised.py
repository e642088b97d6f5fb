"""The supervised reference: the same decoder, trained on label maps of the training pairs, which no other method
reads. It measures what these features and a decoder of this size can achieve. supervised.labels: a benchmark in
shards, whose file extension and classes they have."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..data import shards
from ..data.images import center_crop, read_label_map
from ..schema import Positive, Section
from ..training.objectives import BaseObjective

TITLE = "supervised"
IGNORED = 255


class Settings(Section):
    labels: str | None
    tau: Positive


class Labels(NamedTuple):
    """Labels of N training pairs, one per pixel embedding."""

    maps: np.ndarray  # (N, h, w) uint8, indices into classes, IGNORED where no class has a text
    classes: torch.Tensor  # (C, d), unit length


def read_labels(extension, background, classes, paths, keys, size):
    """Read the Labels of pairs, cropped like their images but not rotated by EXIF, at the centre of each embedding's cell. extension:
    of label maps in the shards. background: whether label 0 is the background. classes: their embeddings (C, d), unit
    length. paths: of shards. keys: of pairs. size: embeddings per side. Raises ValueError if a map, class or sample is missing."""
    rows, maps = {key: row for row, key in enumerate(keys)}, np.full((len(keys), size, size), IGNORED, np.uint8)
    for sample in (sample for path in paths for sample in shards.read_samples(path)):
        key = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        if key not in rows:
            continue
        if extension not in sample:
            raise ValueError(f"{key} has no {extension}: supervised.labels has to name label maps that all training pairs have")
        try:
            stored = read_label_map(io.BytesIO(sample[extension]))
        except ValueError as error:
            raise ValueError(f"{key}: {extension}: {error}") from None
        labels = center_crop(stored, size, Image.Resampling.NEAREST)
        if (highest := labels.max(where=labels != IGNORED, initial=0)) >= (count := min(IGNORED, len(classes) + background)):
            raise ValueError(f"{key}: its label map holds {highest}: must be at most {count - 1}")
        maps[rows.pop(key)] = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1) if background else labels
    if rows:
        raise ValueError(f"{next(iter(rows))}: the shards have changed since `prepare` read them; run it again")
    return Labels(maps, classes)


class Objective(BaseObjective):
    """Cross-entropy of cos(V[p], class) / tau, averaged over the labelled pixels of each image, then over images. No parameters."""

    def forward(self, batch, stages, decoder):
        pixels, labels = stages[-1].flatten(2).transpose(1, 2), batch.labels.flatten(1)  # b, L, d; b, L
        logits = F.normalize(pixels, dim=-1) @ batch.classes.T / self.settings.tau  # b, L, C
        by_pixel = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # b, L
        labelled = (labels != IGNORED).sum(1).clamp(min=1)
        return {"label": batch.world.gather(by_pixel.sum(1) / labelled).mean()}
