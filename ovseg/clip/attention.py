"""Attention of a tower's last block: the modes of reading dense features without training (DENSE_MODES).

A mode is a function of q, k, v, each (n, heads, tokens, width of a head), and of the patches' grid (rows, columns); what it returns has
the shape of v. Tokens are the patches, row by row, behind the class token of a tower that has one.
"""

import torch
import torch.nn.functional as F

attend = F.scaled_dot_product_attention  # (q, k, v): softmax(q k / root of the width of a head) v

GAUSSIAN = 5.0  # NACLIP's standard deviation, in patches
KEYS = 0.08  # share of similar keys in PEARL's attention, as its public code has it if a benchmark's file names no other


def naclip(q, k, v, grid):
    """Similar keys, and a Gaussian of the distance between patches (Hajimiri et al. 2025; public code: sinahmr/NACLIP).

    The Gaussian, 1 at distance 0, is added to k k / root before the softmax; to those of the class token 0 is added.
    """
    sides = [torch.arange(side, device=k.device) for side in grid]
    vertical, horizontal = (torch.exp(-((side[:, None] - side) ** 2) / (2 * GAUSSIAN**2)) for side in sides)
    classes = k.shape[2] - grid[0] * grid[1]
    return attend(k, k, v, F.pad(torch.kron(vertical, horizontal), (classes, 0, classes, 0)).to(k.dtype))


def pearl(q, k, v, grid):
    """Keys rotated onto the queries, and a share of similar keys (the Procrustes step of Pei et al. 2026; public code: PGSmall/PEARL).

    The rotation, one of each image and head, is that of the centred tokens. Means are weighted by the norm of the query and leave
    the class token out. In float32, as the public code. PEARL's second step smooths scores along a picture's edges and is not
    a matter of dense features.
    """
    classes, width = q.shape[2] - grid[0] * grid[1], q.shape[3]
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = q.float(), k.float(), F.pad(v.float(), (0, width))
        weights = F.pad(q[:, :, classes:].norm(dim=-1, keepdim=True), (0, 0, classes, 0))
        weights = weights / (weights.sum(2, keepdim=True) + 1e-6)
        own, centred = (x - (weights * x).sum(2, keepdim=True) for x in (q, k))
        rotated = k @ polar(centred.mT @ own)
        # q rotated + KEYS * centred centred, as one product. PyTorch needs a fraction of the memory if v is as wide
        both = torch.cat([q, KEYS * centred], -1), torch.cat([rotated, centred], -1)
        return attend(*both, values, scale=width**-0.5)[..., :width].to(v.dtype)


def polar(m, steps=5, small=1e-6):
    """m (..., d, d) times the inverse root of m.T m by Newton and Schulz, which tends to the rotation of m's polar decomposition.

    Five steps, as PEARL's public code: directions in which m is small are then shorter than in a rotation.
    """
    identity = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    square = m.mT @ m
    norm = torch.linalg.matrix_norm(square, keepdim=True).clamp_min(small)
    root, inverse = square / norm + small * identity, identity
    for _ in range(steps):
        step = (3 * identity - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return m @ inverse / norm.sqrt()


DENSE_MODES = {
    "clip": lambda q, k, v, grid: attend(q, k, v),  # the block as it is
    "maskclip": lambda q, k, v, grid: v,  # each patch is described by its own value (Zhou et al. 2022; MGCA §4.1)
    "sclip": lambda q, k, v, grid: attend(q, q, v) + attend(k, k, v),  # correlative self-attention (Wang et al. 2023)
    "clearclip": lambda q, k, v, grid: attend(q, q, v),  # Lan et al. 2024
    "naclip": naclip,
    "pearl": pearl,
}
ATTENTION_ALONE = {"clearclip", "naclip", "pearl"}  # modes without the last block's residual connection and MLP
