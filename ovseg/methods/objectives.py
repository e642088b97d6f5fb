"""What a decoder is trained by: the objectives of one or several methods on the same batch.

A method is a file of this package, of the name that train.method has for it, with a class Objective(nn.Module):

    __init__(settings, width)         settings: the section of params.yaml of the method's name, None if it has none; width: d
    forward(batch, stages, decoder)   a Batch, the decoder's maps of its images (Decoder.stages), the decoder -> {name: scalar loss}

Its parameters, if it has any, are trained and saved with the decoder's. Names in values.METHODS; docs/methods.md has an example.
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
    """A step's images and what is known of them. B of the whole batch, b of this process' share of it."""

    dense: torch.Tensor  # (b, d, h, w), CLIP's dense features, not normalised
    texts: torch.Tensor  # (B, d), embeddings of the texts drawn for the images, frozen, not normalised; None for labels
    negative: torch.Tensor  # (B, B) bool, which pairs are negatives of each other; None for labels
    labels: torch.Tensor  # (b, 2h, 2w) int64, of supervised alone, else None
    classes: torch.Tensor  # (C, d), unit length, of supervised alone, else None
    precision: str  # float32 or bfloat16, of the decoder
    random: np.random.Generator  # of this step, the same in every process: draw for the whole batch
    world: distributed.World
    images: np.ndarray = None  # (b, H, W, 3) uint8, the images themselves, and the FrozenCLIP that encoded them in this step;
    clip: object = None  # None where features were encoded before

    def autocast(self):
        """The context that the decoder runs in."""
        return torch.autocast(self.dense.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class Learner(nn.Module):
    """A decoder and the objectives of its methods: what the optimizer and DistributedDataParallel see."""

    def __init__(self, decoder, sections):
        """sections: {method: its section of params.yaml, or None}."""
        super().__init__()
        self.decoder = decoder
        self.objectives = nn.ModuleDict({name: open_objective(name, section, decoder.width) for name, section in sections.items()})

    def forward(self, batch):
        """{name: scalar}, all losses of all methods. Raises ValueError if two have one name."""
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
    """The untrained Objective of a method, by its name."""
    return importlib.import_module(f".{method}", __package__).Objective(settings, width)


def save_objectives(objectives, folder):
    """Write the parameters of the objectives beside the decoder's, if they have any, in place of an earlier training's."""
    state = {name: value.contiguous().cpu() for name, value in objectives.state_dict().items()}
    Path(folder, WEIGHTS).unlink(missing_ok=True)
    if state:
        write_whole(f"{folder}/{WEIGHTS}", lambda part: save_file(state, part))
