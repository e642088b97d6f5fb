"""Training objectives of one or several methods on the same batch.

A method is a module of this package, named as in train.method, with a class Objective(nn.Module):

    __init__(settings, width)         settings: the method's section of params.yaml, or None if it has none; width: d
    forward(batch, stages, decoder)   a Batch, its maps from Decoder.stages, and the decoder -> {name: scalar loss}

Its parameters, if any, are trained and saved with the decoder's. values.METHODS lists the names; docs/methods.md has an example.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ..data.files import write_whole
from . import distributed

WEIGHTS = "objective.safetensors"
RESERVED = {"step", "epoch", "lr", "loss", "gate0", "gate1", "seed"}  # columns of history.csv


class Batch(NamedTuple):
    """The inputs of one training step. B: size of the whole batch; b: size of this process' share."""

    dense: torch.Tensor  # (b, d, h, w), CLIP's dense features, not normalised
    texts: torch.Tensor  # (B, d), embeddings of the texts drawn for the images, frozen, not normalised; None for labels
    negative: torch.Tensor  # (B, B) bool, which pairs are negatives of each other; None for labels
    labels: torch.Tensor  # (b, 2h, 2w) int64, only for supervised, else None
    classes: torch.Tensor  # (C, d), unit length, only for supervised, else None
    precision: str  # precision of the decoder, float32 or bfloat16
    random: np.random.Generator  # this step's generator, identical in every process: draw for the whole batch
    world: distributed.World
    images: np.ndarray = None  # (b, H, W, 3) uint8, the input images; None with cached features
    clip: object = None  # the FrozenCLIP that encoded them in this step; None with cached features

    def autocast(self):
        """Autocast context for the decoder."""
        return torch.autocast(self.dense.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class Learner(nn.Module):
    """A decoder and its training objectives in one module, for the optimizer and DistributedDataParallel."""

    def __init__(self, decoder, sections):
        """sections: {method: its section of params.yaml, or None}."""
        super().__init__()
        self.decoder = decoder
        self.objectives = nn.ModuleDict({name: open_objective(name, section, decoder.width) for name, section in sections.items()})

    def forward(self, batch):
        """All losses of all methods, {name: scalar}. Raises ValueError if two share a name or a name is in RESERVED."""
        with batch.autocast():
            stages = self.decoder.stages(batch.dense)
        stages = [stage.float() for stage in stages]
        found = {}
        for method, objective in self.objectives.items():
            losses = objective(batch, stages, self.decoder)
            if taken := losses.keys() & (found.keys() | RESERVED):
                raise ValueError(f"a loss of {method} is named {min(taken)}: another has this name, or history.csv uses it")
            found |= losses
        return found


def open_objective(method, settings, width):
    """Create the untrained Objective of a method by name."""
    return importlib.import_module(f".{method}", __package__).Objective(settings, width)


def save_objectives(objectives, folder):
    """Write the objectives' parameters, if any, next to the decoder's. Parameters of an earlier run are deleted."""
    state = {name: value.contiguous().cpu() for name, value in objectives.state_dict().items()}
    Path(folder, WEIGHTS).unlink(missing_ok=True)
    if state:
        write_whole(f"{folder}/{WEIGHTS}", lambda part: save_file(state, part))
