"""The decoder, the only thing trained: upsampling and two gated convolutions (MGCA §4.1, after TCL). At d = 512 it has
the paper's 4.72M parameters. Gates start at 0: untrained, it only upsamples CLIP's dense features by a factor of 2."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_model
from torch import nn

from ..data.files import write_whole

WEIGHTS = "decoder.safetensors"


class GatedConv(nn.Module):
    """x + tanh(g) * conv3x3(gelu(layernorm(x))), where g is a scalar initialised to 0. (B, d, h, w) -> (B, d, h, w)."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)  # over channels
        return x + torch.tanh(self.gate) * self.conv(F.gelu(y))


class Decoder(nn.Module):
    """Maps dense CLIP features to pixel embeddings, both unnormalised: (B, d, h, w) -> (B, d, 2h, 2w)."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.Sequential(GatedConv(width), GatedConv(width))

    def forward(self, features):
        return self.stages(features)[-1]

    def stages(self, features):
        """Maps after upsampling and after each block: a list of (B, d, 2h, 2w). The last one holds the pixel embeddings."""
        maps = [self.upsample(features)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps

    @staticmethod
    def upsample(features):
        """Nearest-neighbour upsampling: (B, d, h, w) -> (B, d, 2h, 2w)."""
        features = features.contiguous(memory_format=torch.channels_last)  # faster layer norm over channels and convolutions
        return F.interpolate(features, scale_factor=2, mode="nearest")

    def save(self, folder):
        """Write the weights into a folder, which is made if needed."""
        write_whole(Path(folder, WEIGHTS), functools.partial(save_model, self))

    @classmethod
    def load(cls, folder):
        """Load a decoder written by `save`, on the CPU and in eval mode."""
        state = load_file(Path(folder, WEIGHTS))
        decoder = cls(state["blocks.0.norm.weight"].shape[0])
        decoder.load_state_dict(state)
        return decoder.eval()
