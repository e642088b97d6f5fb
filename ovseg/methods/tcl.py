"""TCL: text-grounded contrastive learning (Cha et al. 2023), its feature level, on the decoder's pixel embeddings.

A text grounds a mask in each image, and what is contrasted is the mean of the pixels in it (their Eq. 3-9):

    m[i, j, p] = sigmoid(w cos(V[i, p], t[j]) + b)            w, b learned (sim2mask)
    g[i, j]    = sum_p m[i, j, p] V[i, p] / sum_p m[i, j, p]
    contrast   = InfoNCE of cos(g[i, j], t[j]) / T, both directions, T learned
    area       = |mean of m[i, i] - 0.4| + |mean of m[i, j] - 0|, j a negative of i
    variation  = total variation of V and of m, over neighbouring pixels

weighted and added. The image level of the paper, CLIP's own embedding of the image cut out by a binary mask, drawn by Gumbel-sigmoid,
needs CLIP's gradient by its input at each step. It is left out: this study trains on dense features that were encoded once. Nor is
its second phase here, nor the mixing with CLIP's own similarities at inference.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .contrast import info_nce

LARGEST_SCALE = 100  # of 1 / T, as CLIP's


class Objective(nn.Module):
    """settings: params.Tcl. Parameters: w, b, and the logarithm of 1 / T."""

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings
        self.weight, self.bias = nn.Parameter(torch.tensor(settings.weight)), nn.Parameter(torch.tensor(settings.bias))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.tau)))

    def forward(self, batch, stages, decoder):
        s, gather, pixels = self.settings, batch.world.gather, stages[-1]  # b, d, H, W
        texts = F.normalize(batch.texts, dim=-1)
        cosines = torch.einsum("ndhw,td->nthw", F.normalize(pixels, dim=1), texts)
        masks = torch.sigmoid(self.weight * cosines + self.bias)  # b, B, H, W
        areas = gather(masks.mean((2, 3)))  # B, B
        grounded = torch.einsum("ndhw,nthw->ntd", pixels, masks / masks.sum((2, 3), keepdim=True))  # b, B, d
        logits = (F.normalize(grounded, dim=-1) * texts).sum(-1) * self.log_scale.exp().clamp(max=LARGEST_SCALE)
        of_others = areas[batch.negative]
        area = (areas.diagonal().mean() - s.area).abs() + (of_others.mean() if len(of_others) else 0.0)  # of others, the prior is 0
        variation = gather(total_variation(pixels)).mean() + gather(total_variation(masks)).mean()
        return {
            "contrast": s.contrast_weight * info_nce(gather(logits), batch.negative),
            "area": s.area_weight * area,
            "variation": s.variation_weight * variation,
        }


def total_variation(maps):
    """Mean absolute difference of neighbouring pixels, along rows plus along columns: (n, c, H, W) -> (n,)."""
    return maps.diff(dim=3).abs().mean((1, 2, 3)) + maps.diff(dim=2).abs().mean((1, 2, 3))
