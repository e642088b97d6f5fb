"""The decoder, the only thing trained: upsampling and two gated convolutions (MGCA §4.1, after TCL).

At d = 512 it has the paper's 4.72M parameters. Every gate starts at 0, so that the untrained decoder hands CLIP's dense
features on (MaskCLIP's, by default), each twice as high and wide, and training starts from there.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ..data.files import write_whole

WEIGHTS = "decoder.safetensors"


class GatedConv(nn.Module):
    """x + tanh(g) * conv3x3(gelu(layernorm(x))), g a scalar that starts at 0. (B, d, h, w) -> (B, d, h, w)."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)  # over channels
        return x + torch.tanh(self.gate) * self.conv(F.gelu(y))


class Decoder(nn.Module):
    """Dense CLIP features to pixel embeddings, both unnormalised: (B, d, h, w) -> (B, d, 2h, 2w)."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.blocks = nn.Sequential(GatedConv(width), GatedConv(width))

    def forward(self, features):
        return self.stages(features)[-1]

    def stages(self, features):
        """The maps after upsampling and after each block, the last of them the pixel embeddings: a list of (B, d, 2h, 2w)."""
        found = [self.upsample(features)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found

    @staticmethod
    def upsample(features):
        """(B, d, h, w) -> (B, d, 2h, 2w), each patch four times."""
        features = features.contiguous(memory_format=torch.channels_last)  # what layer norm over channels and fast convolutions want
        return F.interpolate(features, scale_factor=2, mode="nearest")

    def save(self, folder):
        """Write the weights into folder, which is made if it does not exist."""
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        write_whole(Path(folder) / WEIGHTS, lambda part: save_file(state, part))

    @classmethod
    def load(cls, folder):
        """The decoder that `save` wrote, on the CPU, for evaluation."""
        state = load_file(Path(folder) / WEIGHTS)
        decoder = cls(state["blocks.0.norm.weight"].shape[0])
        decoder.load_state_dict(state)
        return decoder.eval()
