"""The interface of methods: the batch they get, InfoNCE over its image-text pairs, and the module that is trained.

A method is a file of ovseg/methods, named as in train.method, with TITLE, its name in tables; Settings(Section), its section of
params.yaml; and Objective(BaseObjective), its losses. docs/methods.md has an example.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .decoder import Decoder, save_weights
from .distributed import World

WEIGHTS = "objective.safetensors"
TAKEN = {"step", "epoch", "lr", "loss", "gate0", "gate1", "seed"}  # columns of history.csv besides the losses of methods


class Batch(NamedTuple):
    """The inputs of one training step. B: size of the whole batch; b: size of this process' share."""

    dense: torch.Tensor  # (b, d, h, w), CLIP's dense features, not normalised
    precision: str  # precision of the decoder, float32 or bfloat16
    random: np.random.Generator  # this step's generator, identical in every process: draw for the whole batch
    world: World
    texts: torch.Tensor = None  # (B, d), embeddings of the texts drawn for the images, frozen, not normalised; None for labels
    negative: torch.Tensor = None  # (B, B) bool, which pairs are negatives of each other; None for labels
    labels: torch.Tensor = None  # (b, 2h, 2w) int64, only for supervised
    classes: torch.Tensor = None  # (C, d), unit length, only for supervised
    encode: Callable = None  # FrozenCLIP.encode_dense of this share's images, with its other arguments; None with cached features

    def autocast(self):
        """Autocast context for the decoder."""
        return torch.autocast(self.dense.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class BaseObjective(nn.Module):
    """The losses of a method: forward(batch, stages, decoder) -> {name: scalar}, of a Batch and its maps from decoder.stages in float32.

    Parameters that a subclass adds are trained and saved with the decoder's. settings: its section of params.yaml. width: d.
    """

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings


class Learner(nn.Module):
    """A decoder and the objectives of its methods in one module, for the optimizer and DistributedDataParallel."""

    def __init__(self, width, sections):
        """sections: {method: its section of params.yaml}."""
        super().__init__()
        self.decoder = Decoder(width)
        self.objectives = nn.ModuleDict({name: module_of(name).Objective(section, width) for name, section in sections.items()})

    def forward(self, batch):
        """All losses of all methods, {name: scalar}. Raises ValueError if two have one name."""
        with batch.autocast():
            stages = self.decoder.stages(batch.dense)
        stages, losses = [stage.float() for stage in stages], {}
        for method, objective in self.objectives.items():
            of_method = objective(batch, stages, self.decoder)
            if taken := of_method.keys() & (losses.keys() | TAKEN):
                raise ValueError(f"{method}: loss name '{min(taken)}' is already taken")
            losses |= of_method
        return losses

    def save(self, folder):
        """Write the decoder and the objectives' parameters, if any, into folder. Those of an earlier training are deleted."""
        self.decoder.save(folder)
        Path(folder, WEIGHTS).unlink(missing_ok=True)
        if self.objectives.state_dict():
            save_weights(self.objectives, Path(folder, WEIGHTS))


def module_of(method):
    """The module of a method: ovseg.methods.mgca for "mgca"."""
    return importlib.import_module(f"..methods.{method}", __package__)


def info_nce(logits, negative, direction="both"):
    """InfoNCE of (B, B) logits. Rows are images, columns are texts, positives lie on the diagonal.

    negative: (B, B) bool; the diagonal is always included. direction: "image-to-text" contrasts each image's text with the other texts,
    "text-to-image" the reverse, "both" averages the two.
    """
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(negative | positive), -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[direction]


def negatives(subjects, mask_equal_texts):
    """Mask of negative image-text pairs: subjects (B,) -> (B, B) bool, True where i != j.

    With mask_equal_texts, pairs with equal subjects are not negatives; see TextBank.subjects.
    """
    negative = ~torch.eye(len(subjects), dtype=torch.bool, device=subjects.device)
    return negative & (subjects[:, None] != subjects[None, :]) if mask_equal_texts else negative
