"""Attention of the last block: training-free modes of extracting dense features (DENSE_MODES).

A mode maps q, k, v, each (n, heads, tokens, head width), and the patch grid (rows, columns) to a tensor of v's shape. Tokens are the
patches in row-major order, preceded by the class token if the tower has one.
"""

import torch
import torch.nn.functional as F

attend = F.scaled_dot_product_attention  # (q, k, v): softmax(q k^T / sqrt(head width)) v
GAUSSIAN = 5.0  # NACLIP's standard deviation, in patches
KEYS = 0.08  # weight of key similarity in PEARL's attention: the default of its public code, which some benchmark configs override


def naclip(q, k, v, grid):
    """Key-key attention (Hajimiri et al. 2025; public code: sinahmr/NACLIP). A Gaussian of the distance between patches,
    1 at distance 0, is added to k k^T / sqrt(head width) before the softmax; entries of the class token get 0."""
    sides = [torch.arange(side, device=k.device) for side in grid]
    vertical, horizontal = (torch.exp(-((side[:, None] - side) ** 2) / (2 * GAUSSIAN**2)) for side in sides)
    classes = k.shape[2] - grid[0] * grid[1]
    return attend(k, k, v, F.pad(torch.kron(vertical, horizontal), (classes, 0, classes, 0)).to(k.dtype))


def pearl(q, k, v, grid):
    """Attention to keys rotated onto the queries, plus key similarity (Procrustes step of Pei et al. 2026; public code:
    PGSmall/PEARL). The rotation is computed in float32 per image and head from centred tokens. Means are weighted by the norm of the
    query and exclude the class token. PEARL's second step, which smooths scores along image edges, does not concern dense features."""
    classes, width = q.shape[2] - grid[0] * grid[1], q.shape[3]
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = q.float(), k.float(), F.pad(v.float(), (0, width))
        weights = F.pad(q[:, :, classes:].norm(dim=-1, keepdim=True), (0, 0, classes, 0))
        weights = weights / (weights.sum(2, keepdim=True) + 1e-6)
        own, centred = (x - (weights * x).sum(2, keepdim=True) for x in (q, k))
        rotated = k @ polar(centred.mT @ own)
        # q rotated^T + KEYS * centred centred^T as one product; v is padded to equal width, with which PyTorch needs far less memory
        both = torch.cat([q, KEYS * centred], -1), torch.cat([rotated, centred], -1)
        return attend(*both, values, scale=width**-0.5)[..., :width].to(v.dtype)


def polar(m, steps=5, small=1e-6):
    """m (..., d, d) times the inverse square root of m.T m, by Newton-Schulz: nearly the rotation of m's polar decomposition.
    With five steps, as in PEARL's public code, directions in which m is small remain shorter than in a rotation."""
    identity = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    square = m.mT @ m
    norm = torch.linalg.matrix_norm(square, keepdim=True).clamp_min(small)
    root, inverse = square / norm + small * identity, identity
    for _ in range(steps):
        step = (3 * identity - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return m @ inverse / norm.sqrt()


DENSE_MODES = {
    "clip": lambda q, k, v, grid: attend(q, k, v),  # unmodified block
    "maskclip": lambda q, k, v, grid: v,  # each patch is described by its own value (Zhou et al. 2022; MGCA §4.1)
    "sclip": lambda q, k, v, grid: attend(q, q, v) + attend(k, k, v),  # correlative self-attention (Wang et al. 2023)
    "clearclip": lambda q, k, v, grid: attend(q, q, v),  # Lan et al. 2024
    "naclip": naclip,
    "pearl": pearl,
}
ATTENTION_ALONE = {"clearclip", "naclip", "pearl"}  # modes without the last block's residual connection and MLP
