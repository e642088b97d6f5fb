"""TCL: text-grounded contrastive learning (Cha et al. 2023), on the decoder's pixel embeddings.

Each text grounds a mask in each image, and the mean of the masked pixels is contrasted with the text (their Eq. 3-9):

    m[i, j, p] = sigmoid(w cos(V[i, p], t[j]) + b)            w, b learned (sim2mask)
    g[i, j]    = sum_p m[i, j, p] V[i, p] / sum_p m[i, j, p]
    contrast   = InfoNCE of cos(g[i, j], t[j]) / T, both directions, T learned
    area       = |mean of m[i, i] - area| + |mean of m[i, j] - 0|, j a negative of i      (the paper: area = 0.4)
    variation  = total variation of V and of m, over neighbouring pixels

The loss is their weighted sum. Not implemented: the paper's image level, its second phase, and its inference, which scores classes by
sigmoid(w cos + b), mixed with CLIP's and refined (PAMR); here the segmenter scores cosines, and w and b are used in training alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..schema import NotNegative, Positive, Section, Share
from ..training.objectives import BaseObjective, info_nce

TITLE = "TCL"
LARGEST_SCALE = 100  # upper bound of 1 / T, as in CLIP


class Settings(Section):
    weight: float
    bias: float
    tau: Positive
    area: Share
    contrast_weight: NotNegative
    area_weight: NotNegative
    variation_weight: NotNegative


class Objective(BaseObjective):
    """Parameters: w, b, and the logarithm of 1 / T."""

    def __init__(self, settings, width):
        super().__init__(settings, width)
        self.weight, self.bias = nn.Parameter(torch.tensor(settings.weight)), nn.Parameter(torch.tensor(settings.bias))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.tau)))

    def forward(self, batch, stages, decoder):
        s, gather, pixels = self.settings, batch.world.gather, stages[-1]  # b, d, H, W
        texts = F.normalize(batch.texts, dim=-1)
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        cosines = torch.einsum("ndhw,td->nthw", F.normalize(pixels, dim=1), texts)
        masks = torch.sigmoid(self.weight * cosines + self.bias)  # b, B, H, W
        areas = gather(masks.mean((2, 3)))  # B, B
        grounded = torch.einsum("ndhw,nthw->ntd", pixels, masks / masks.sum((2, 3), keepdim=True))  # b, B, d
        logits = (F.normalize(grounded, dim=-1) * texts).sum(-1) * scale
        of_others = areas[batch.negative]
        area = (areas.diagonal().mean() - s.area).abs() + (of_others.mean() if len(of_others) else 0.0)  # the prior of negatives is 0
        variation = gather(total_variation(pixels)).mean() + gather(total_variation(masks)).mean()
        contrast = info_nce(gather(logits), batch.negative)
        return {"contrast": s.contrast_weight * contrast, "area": s.area_weight * area, "variation": s.variation_weight * variation}


def total_variation(maps):
    """Mean absolute difference of neighbouring pixels, along rows plus along columns: (n, c, H, W) -> (n,)."""
    return maps.diff(dim=3).abs().mean((1, 2, 3)) + maps.diff(dim=2).abs().mean((1, 2, 3))
