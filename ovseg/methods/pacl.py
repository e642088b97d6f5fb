"""PACL: patch-aligned contrastive learning (Mukhoti et al. 2023, Eq. 2-4), on the decoder's pixel embeddings.

A text weights the pixels of an image by their compatibility, and is contrasted with their weighted mean:

    s[i, j, p] = cos(V[i, p], t[j])
    a[i, j]    = softmax over p of s[i, j] / patch_tau        (the paper: patch_tau = 1)
    phi[i, j]  = sum_p a[i, j, p] s[i, j, p]                  dot product of the pooled unit-length pixels and the unit-length text
    loss       = InfoNCE of phi / tau, both directions        (the paper trains a residual projection, not a decoder)
"""

import torch.nn.functional as F

from ..schema import Positive, Section
from ..training.objectives import BaseObjective, info_nce

TITLE = "PACL"


class Settings(Section):
    patch_tau: Positive
    tau: Positive


class Objective(BaseObjective):
    """No parameters."""

    def forward(self, batch, stages, decoder):
        pixels = F.normalize(stages[-1].flatten(2), dim=1)  # b, d, L
        scores = F.normalize(batch.texts, dim=-1) @ pixels  # b, B, L
        compatibility = ((scores / self.settings.patch_tau).softmax(-1) * scores).sum(-1)  # b, B
        return {"compatibility": info_nce(batch.world.gather(compatibility / self.settings.tau), batch.negative)}
