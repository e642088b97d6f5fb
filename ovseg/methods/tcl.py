"""TCL: text-grounded contrastive learning (Cha et al. 2023), on the decoder's pixel embeddings.

Each text grounds a mask in each image, and the mean of the masked pixels is contrasted with the text (their Eq. 3-9):

    m[i, j, p] = sigmoid(w cos(V[i, p], t[j]) + b)            w, b learned (sim2mask)
    g[i, j]    = sum_p m[i, j, p] V[i, p] / sum_p m[i, j, p]
    contrast   = InfoNCE of cos(g[i, j], t[j]) / T, both directions, T learned
    area       = |mean of m[i, i] - area| + |mean of m[i, j] - 0|, j a negative of i      (the paper: area = 0.4)
    variation  = total variation of V and of m, over neighbouring pixels

The loss is their weighted sum. With `image_level`, CLIP also encodes the masked image:

    z[i, p]    = 1 where w cos(V[i, p], t[i]) + b + noise > 0, else 0, with the gradient of the sigmoid (Gumbel-sigmoid)
    image      = InfoNCE of cos(CLIP(x[i] z[i]), t[j]) / T

where x is the image and the mask is upsampled to its size. This needs the gradient of CLIP with respect to its input in each step, so
features cannot be cached. The paper's second training phase and its mixing with CLIP's similarities at inference are not implemented.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .contrast import info_nce

LARGEST_SCALE = 100  # upper bound of 1 / T, as in CLIP


class Objective(nn.Module):
    """settings: schema.Tcl. Parameters: w, b, and the logarithm of 1 / T."""

    def __init__(self, settings, width):
        super().__init__()
        self.settings = settings
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
        image = {}
        if s.image_level:
            of_image = torch.arange(len(cosines), device=cosines.device)
            own = self.weight * cosines[of_image, of_image + batch.world.share(len(texts)).start] + self.bias  # b, H, W: own text's logits
            binary = gumbel_sigmoid(own, batch.random, len(texts), batch.world)[:, None]
            cut = F.interpolate(binary, batch.images.shape[1:3], mode="nearest")[:, 0]
            seen = F.normalize(batch.clip.encode_image(batch.images, cut), dim=-1)  # b, d
            image["image"] = s.contrast_weight * info_nce(gather(seen @ texts.T * scale), batch.negative)
        variation = gather(total_variation(pixels)).mean() + gather(total_variation(masks)).mean()
        return {
            "contrast": s.contrast_weight * info_nce(gather(logits), batch.negative),
            "area": s.area_weight * area,
            "variation": s.variation_weight * variation,
        } | image


def gumbel_sigmoid(logits, random, size, world):
    """Sample a binary mask, each pixel 1 with probability sigmoid(logit): (b, H, W) of 0 and 1, with the gradient of the sigmoid.

    random draws for the whole batch of `size` images, so results do not depend on the number of processes in `world`.
    """
    uniform = random.uniform(1e-6, 1 - 1e-6, (size, *logits.shape[1:]))[world.share(size)]
    noise = torch.from_numpy(np.log(uniform) - np.log1p(-uniform)).to(logits)  # logistic noise: the difference of two Gumbel variables
    soft = torch.sigmoid(logits + noise)
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def total_variation(maps):
    """Mean absolute difference of neighbouring pixels, along rows plus along columns: (n, c, H, W) -> (n,)."""
    return maps.diff(dim=3).abs().mean((1, 2, 3)) + maps.diff(dim=2).abs().mean((1, 2, 3))
