"""Sliding windows: their positions on an image, and the stitching of window scores into scores and labels of the image (MGCA §4.1)."""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .resizing import resized, resized_size

BACKGROUND = "background"  # the name of the class of pixels that belong to no other class
ENTRIES = 1 << 20  # maximum number of scores held at once: 4 MiB, which caches of processors hold


@dataclass(frozen=True)
class WindowGrid:
    """Positions of windows on an image, in pixels: the size of the resized image, and the starts of the windows."""

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def positions(self):
        """(top, left) of each window, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]


def window_starts(length, window, stride):
    """Start positions of windows along a side: every `stride`, the last one shifted inside. One window if it covers the side."""
    return (*range(0, length - window, stride), max(0, length - window))


def window_grid(height, width, settings):
    """The windows of an image of that size, once it is resized (resizing.resized_size). settings: schema.Segment."""
    height, width = resized_size(height, width, settings)
    return WindowGrid(height, width, *(window_starts(side, settings.window, settings.stride) for side in (height, width)))


def cut_windows(image, settings):
    """Resize a PIL RGB image and cut it: (windows (n, window, window, 3) uint8, WindowGrid). Larger windows repeat the image's border."""
    where, size = window_grid(image.height, image.width, settings), settings.window
    missing = [(0, max(0, size - side)) for side in (where.height, where.width)]
    pixels = np.pad(resized(image, where.height, where.width, settings.resize), (*missing, (0, 0)), mode="edge")
    return np.stack([pixels[top : top + size, left : left + size] for top, left in where.positions]), where


@functools.lru_cache(maxsize=64)
def interpolation(length, starts, window, grid, size):
    """Matrix (size, windows * grid) that maps the grids of all windows to one side of the image: each is upsampled (bilinear) to `window`
    pixels, overlapping windows are averaged, pixels beyond `length` are cropped, and the rest is resized to `size`."""
    up = F.interpolate(torch.eye(grid)[None], window, mode="linear", align_corners=False)[0]  # grid, window
    side = torch.zeros(len(starts), grid, max(window, length))
    cover = torch.zeros(side.shape[-1])
    for part, start in zip(side, starts, strict=True):
        part[:, start : start + window] = up
        cover[start : start + window] += 1
    side = (side / cover)[..., :length].flatten(0, 1)  # windows * grid, length
    return F.interpolate(side[None], size, mode="linear", align_corners=False)[0].T


@dataclass(frozen=True)
class Scores:
    """Class scores (C, H, W) of an image, computed a part at a time from a mosaic (C, rows * h, columns * w) of its windows' scores and
    two `interpolation`s, down (H, rows * h) and across (W, columns * w)."""

    mosaic: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor

    def rows(self, part=slice(None), columns=slice(None)):
        """Scores of the rows in a slice of 0..H and the columns in a slice of 0..W: (C, n, m)."""
        down, across = self.down[part], self.across[columns]
        row, column = (weights.any(0).nonzero()[:, 0] for weights in (down, across))  # of the grid, those that contribute to the part
        return down[:, row] @ (self.mosaic[:, row[:, None], column] @ across[:, column].T)

    def parts(self):
        """Pairs of slices, rows and columns, that cover the image, each part with at most ENTRIES scores (but at least one pixel)."""
        longest, sides = max(1, math.isqrt(ENTRIES // len(self.mosaic))), (len(self.down), len(self.across))
        steps = [(side, -(-side // -(-side // longest))) for side in sides]  # the fewest parts, of nearly equal lengths
        return list(itertools.product(*([slice(i, i + step) for i in range(0, side, step)] for side, step in steps)))

    def labels(self, scale=None, threshold=None, others=0):
        """Label map (H, W), equal to `to_labels` of all rows, computed part by part."""
        labels = torch.empty(len(self.down), len(self.across), dtype=torch.int64, device=self.mosaic.device)
        for part in self.parts():
            labels[part] = to_labels(self.rows(*part), scale, threshold, others)
        return labels


def stitch(scores, where, window, size):
    """Stitch scores (n, C, h, w) of the n windows of `where`, a WindowGrid, into Scores of the image. window: in pixels. size: (H, W)."""
    h, w = scores.shape[2:]
    mosaic = scores.unflatten(0, (len(where.tops), len(where.lefts))).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    down = interpolation(where.height, where.tops, window, h, size[0]).to(scores)
    across = interpolation(where.width, where.lefts, window, w, size[1]).to(scores)
    return Scores(mosaic, down, across)


def to_labels(scores, scale=None, threshold=None, others=0):
    """The index of the best class; with a threshold or others, 1 + that index, and 0 (background) where all `probabilities` are below it.
    scores (C, H, W) -> (H, W) int64. others: number of last classes that are background, too."""
    if threshold is None:
        label = largest(scores)[1]
        return torch.where(label < len(scores) - others, label + 1, 0) if others else label
    best, label = largest(probabilities(scores, scale))
    return torch.where((best < threshold) | (label >= len(scores) - others), 0, label + 1)


def largest(scores):
    """scores.max(0), values and first indices, in steps that PyTorch vectorises on CPUs: seven times as fast. scores: float32."""
    best = scores.amax(0)
    number = torch.arange(len(scores), 0, -1, dtype=scores.dtype, device=scores.device)[:, None, None]  # C for the first, 1 for the last
    is_best = torch.eq(scores, best, out=torch.empty_like(scores))  # 0 or 1; as bool, it would not be vectorised
    return best, len(scores) - is_best.mul_(number).amax(0).long()


def raw_labels(scores, scale=None, threshold=None):
    """The label map (H, W) of Scores that gives each pixel the label of the embedding it lies in; in an overlap, the first window's."""
    row, column = ((weights * 1000).round().max(1).indices for weights in (scores.down, scores.across))  # ties are ties after rounding
    return to_labels(scores.mosaic[:, row][:, :, column], scale, threshold)


def probabilities(scores, scale, dim=0):
    """softmax(scale * scores) over the class dimension `dim`. scale None: scores are returned, as they are probabilities already."""
    return scores if scale is None else (scores * scale).softmax(dim)
