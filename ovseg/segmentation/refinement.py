"""PAMR, pixel-adaptive mask refinement (Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020), with the
settings of TCL's evaluation: ten times, a pixel's scores become the mean of its neighbours', weighted by how similar their colours are."""

import functools

import torch
import torch.nn.functional as F

from .resizing import resized
from .windows import Scores, interpolation, stitch

DILATIONS = (1, 2, 4, 8, 12, 24)  # of 3x3 neighbourhoods, in pixels
PIXELS, CLASSES = 1 << 12, 32  # numbers handled at once, which bound the memory


def neighbours(height, width):
    """Indices (height * width, 48), int32, of each pixel's neighbours; beyond the border, of the nearest pixel of the border."""
    steps = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    down, across = torch.cat([dilation * steps for dilation in DILATIONS]).T
    rows = (torch.arange(height)[:, None] + down).clamp(0, height - 1)
    columns = (torch.arange(width)[:, None] + across).clamp(0, width - 1)
    return (rows[:, None] * width + columns).flatten(0, 1).int()


def affinities(colours, own, near):
    """Weights (n, 48) of n pixels' neighbours: the softmax of -|difference| / (0.1 * standard deviation), averaged over the channels, where
    the deviation is of the neighbours and six times the pixel. colours: (N, 3), of all pixels. own: (n, 3). near: (n, 48), indices."""
    difference = colours.T[:, near] - own.T[..., None]  # 3, n, 48
    squares = difference.square().sum(-1, keepdim=True) - difference.sum(-1, keepdim=True).square() / 54  # 6 of the 54 differences are 0
    return (-difference.abs() / (0.1 * (squares.clamp(min=0) / 53).sqrt() + 1e-8)).mean(0).softmax(-1)


@functools.lru_cache(maxsize=1)  # benchmarks over the same pictures, and the segmenters of several seeds, share it
def graph(colours, height, width, device):
    """Neighbours and affinities (height * width, 48) of the pixels of an image. colours: its bytes, RGB."""
    colours = torch.frombuffer(bytearray(colours), dtype=torch.uint8).to(device).float().view(-1, 3)
    near = neighbours(height, width).to(device)
    return near, torch.cat([affinities(colours, *part) for part in zip(colours.split(PIXELS), near.split(PIXELS), strict=True)])


def pamr(pixels, scores):
    """Refine scores (C, H, W) by the colours of an image, pixels (H, W, 3) uint8. Returns (C, H, W)."""
    height, width = scores.shape[1:]
    near, weights = graph(pixels.tobytes(), height, width, scores.device)
    refined = []
    for part in scores.flatten(1).split(CLASSES):
        part = part.T.contiguous()
        for _ in range(10):
            part = F.embedding_bag(near, part, mode="sum", per_sample_weights=weights)
        refined.append(part.T)
    return torch.cat(refined).unflatten(1, (height, width))


def refined(scores, where, settings, size, image):
    """Scores (H, W) = `size` as of windows.stitch, refined by `pamr` at the size of the PIL RGB image or, if smaller, of that which was cut
    into windows: segment.short_side and max_ratio bound time and memory. scores, where: see stitch. settings: schema.Segment."""
    small = min(image.height, where.height), min(image.width, where.width)
    pixels = resized(image, *small, settings.resize)
    mosaic = pamr(pixels, stitch(scores, where, settings.window, small).rows())
    return Scores(mosaic, *(interpolation(side, (0,), side, side, to).to(mosaic) for side, to in zip(small, size, strict=True)))
