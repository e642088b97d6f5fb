"""Semantic units: sets of pixels that are classified jointly (MGCA §3.3).

    pixel          each pixel embedding is its own unit
    meta-point     each pixel joins the most similar of a grid of sampled pixels; a unit is the mean of its pixels
    group          k-means clusters with distant initial centres: fewer, global units
    learned-group  groups to which the trained GroupViT objective assigns pixels
"""

import torch
import torch.nn.functional as F

KMEANS_STEPS = 10


def meta_points(height, width, points):
    """Positions of `points` (a square number) on a uniform grid, as indices into the flattened (height, width)."""
    side = round(points**0.5)
    if side > min(height, width):
        raise ValueError(f"meta_points = {points}: must be at most {min(height, width) ** 2} on a {height}x{width} grid of pixels")
    y = ((torch.arange(side) + 0.5) * height / side).long()
    x = ((torch.arange(side) + 0.5) * width / side).long()
    return (y[:, None] * width + x).flatten()


def assign(pixels, centres, affinity="cosine"):
    """Assign each pixel to its most similar centre. pixels (n, L, d), centres (n, K, d) -> (n, L) indices."""
    if affinity == "cosine":
        centres = F.normalize(centres, dim=-1)  # the norm of a pixel does not affect its argmax
    return (pixels @ centres.transpose(1, 2)).argmax(-1)


def means(pixels, assignment, units):
    """Mean embedding of each unit. pixels (n, L, d), assignment (n, L) -> (n, units, d); an empty unit is 0."""
    member = F.one_hot(assignment, units).to(pixels.dtype)  # n, L, K
    return member.transpose(1, 2) @ pixels / member.sum(1).clamp(min=1)[..., None]


def spread_out(pixels, count):
    """Initial k-means centres, (n, L, d) -> (n, count, d): the pixel least similar to the mean, then the least similar to those before."""
    directions = F.normalize(pixels, dim=-1)
    nearest = (directions @ directions.mean(1, keepdim=True).transpose(1, 2))[..., 0]  # n, L
    rows, chosen = torch.arange(len(pixels), device=pixels.device), []
    for _ in range(count):
        index = nearest.argmin(-1)
        chosen.append(pixels[rows, index])
        similar = (directions @ directions[rows, index][..., None])[..., 0]
        nearest = similar if len(chosen) == 1 else torch.maximum(nearest, similar)
    return torch.stack(chosen, 1)


def form(embeddings, unit, meta_point_count=36, groups=8, affinity="cosine", grouping=None):
    """Form units of embeddings (n, d, h, w) of n windows, each by itself. Returns (the embedding that classifies each pixel
    (n, d, h, w), the index of its unit (n, h, w)). grouping: a trained groupvit.Objective, required by "learned-group"."""
    n, _, height, width = embeddings.shape
    if unit == "pixel":
        return embeddings, torch.arange(height * width, device=embeddings.device).view(1, height, width).expand(n, -1, -1)
    pixels = embeddings.flatten(2).transpose(1, 2)  # n, L, d
    if unit == "meta-point":
        assignment, groups = assign(pixels, pixels[:, meta_points(height, width, meta_point_count)], affinity), meta_point_count
    elif unit == "group":
        centres = spread_out(pixels, groups)
        for _ in range(KMEANS_STEPS):
            assignment = assign(pixels, centres, "cosine")
            moved = means(F.normalize(pixels, dim=-1), assignment, groups)
            empty = ~F.one_hot(assignment, groups).any(1)  # n, K
            centres = torch.where(empty[..., None], centres, moved)
    else:
        assignment, groups = grouping.assign(pixels), len(grouping.tokens)
    unit_means = means(pixels, assignment, groups)  # n, K, d
    spread = unit_means.gather(1, assignment[..., None].expand(-1, -1, pixels.shape[-1]))  # n, L, d
    return spread.transpose(1, 2).unflatten(2, (height, width)), assignment.unflatten(1, (height, width))
