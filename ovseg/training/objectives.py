"""The interface of methods. A method is a file of ovseg/methods, named as in train.method, with TITLE, its name in tables;
Settings(Section), its section of params.yaml; and Objective(BaseObjective), its losses. docs/methods.md has an example."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import nn

from .. import methods
from ..data.files import write_whole
from .decoder import Decoder
from .distributed import World

WEIGHTS = "objective.safetensors"
TAKEN = {"step", "epoch", "lr", "loss", "gate0", "gate1", "seed"}  # columns of history.csv besides the losses of methods


class Batch(NamedTuple):
    """The inputs of one training step. B: size of the whole batch; b: of this process' share."""

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
    settings: its section of params.yaml. width: d. Parameters that a subclass adds are trained and saved with the decoder's."""

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings


class Learner(nn.Module):
    """A decoder and the objectives of methods in one module. width: d. sections: {method: its section of params.yaml}."""

    def __init__(self, width, sections):
        super().__init__()
        self.decoder = Decoder(width)
        self.objectives = nn.ModuleDict({name: methods.module(name).Objective(section, width) for name, section in sections.items()})

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
            write_whole(Path(folder, WEIGHTS), functools.partial(save_model, self.objectives))


def info_nce(logits, negative, direction="both"):
    """InfoNCE of (B, B) logits. Rows are images, columns are texts, positives lie on the diagonal, negatives where negative (B, B) is true.
    direction: "image-to-text" contrasts each image's text with other texts, "text-to-image" the reverse, "both" averages the two."""
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(negative | positive), -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[direction]


def negatives_of(bank, rows, text_ids, settings):
    """Mask of negative pairs of a batch, (B, B) bool. rows (B,): pairs of the TextBank. text_ids (B,): drawn. settings: schema.Train."""
    negative = negatives(torch.from_numpy(bank.subjects(text_ids)), settings.mask_equal_texts)
    return negative & ~torch.from_numpy(bank.describes(text_ids, rows)) if settings.mask_named else negative


def negatives(subjects, mask_equal_texts):
    """Mask of negative image-text pairs: subjects (B,), see TextBank.subjects -> (B, B) bool, True where i != j and, with
    mask_equal_texts, their subjects differ."""
    ids = subjects if mask_equal_texts else torch.arange(len(subjects), device=subjects.device)
    return ids[:, None] != ids
