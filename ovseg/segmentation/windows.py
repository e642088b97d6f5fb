"""Sliding windows: where they lie on an image, and how scores of windows become scores and labels of the picture (MGCA §4.1)."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .resizing import resized, resized_size

BACKGROUND = "background"  # the name of the class of pixels that belong to no other
ENTRIES = 1 << 23  # of scores at once: 32 MiB


@dataclass(frozen=True)
class WindowGrid:
    """How windows lie on an image: its size once resized, and where windows start. All in pixels."""

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def positions(self):
        """(top, left) of each window, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]


def window_starts(length, window, stride):
    """Where windows start along a side: every `stride`, the last one pulled back inside. One window if it covers all."""
    if length <= window:
        return (0,)
    return (*range(0, length - window, stride), length - window)


def window_grid(height, width, settings):
    """The windows of an image of that size, once it is resized (resizing.resized_size). settings: schema.Segment."""
    height, width = resized_size(height, width, settings)
    starts = (window_starts(side, settings.window, settings.stride) for side in (height, width))
    return WindowGrid(height, width, *starts)


def cut_windows(image, settings):
    """Cut an image into windows. image: PIL RGB. Returns (windows (n, window, window, 3) uint8, WindowGrid).

    The image is resized first (resizing.py). What a window larger than the image lacks repeats the border; `stitch` drops it again.
    """
    where = window_grid(image.height, image.width, settings)
    pixels = resized(image, where.height, where.width, settings.resize)
    missing = [(0, max(0, settings.window - side)) for side in pixels.shape[:2]]
    pixels = np.pad(pixels, (*missing, (0, 0)), mode="edge")
    size = settings.window
    return np.stack([pixels[top : top + size, left : left + size] for top, left in where.positions]), where


@functools.lru_cache(maxsize=64)
def interpolation(length, starts, window, grid, size):
    """The linear map along one side from the grids of all windows to the picture. Returns (size, windows * grid).

    Each window's grid is upsampled (bilinear) to `window` pixels, windows are averaged where they overlap, what lies
    beyond `length` is dropped and the rest resized to `size`. All of that is linear and treats height and width apart.
    """
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
    """Class scores of a picture, kept on the grids of its windows: the full (C, H, W) is made a few rows at a time.

    mosaic (C, rows * h, columns * w): scores of all windows side by side. down (H, rows * h) and across (W, columns * w):
    the maps of `interpolation`, one a side.
    """

    mosaic: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor

    def rows(self, part=slice(None)):
        """Scores of some rows, (C, n, W). part: slice of 0..H."""
        down = self.down[part]
        used = down.any(0).nonzero()[:, 0]  # rows of the grids that these rows are made of
        return down[:, used] @ (self.mosaic[:, used] @ self.across.T)

    def parts(self):
        """Slices of rows, all of them, of which no more than ENTRIES scores each are made."""
        step = max(1, ENTRIES // (len(self.mosaic) * len(self.across)))
        return [slice(start, start + step) for start in range(0, len(self.down), step)]

    def labels(self, scale=None, threshold=None, others=0):
        """The label map (H, W), as `to_labels` of all rows, holding no more than ENTRIES scores at once."""
        labels = torch.empty(len(self.down), len(self.across), dtype=torch.int64, device=self.mosaic.device)
        for part in self.parts():
            labels[part] = to_labels(self.rows(part), scale, threshold, others)
        return labels


def stitch(scores, where, window, size):
    """Scores of windows to Scores of the picture, windows averaged where they overlap.

    scores (n, C, h, w), of the windows of where (WindowGrid), each `window` pixels wide. size: (H, W) of the picture.
    """
    rows, columns = len(where.tops), len(where.lefts)
    n, classes, h, w = scores.shape
    mosaic = scores.view(rows, columns, classes, h, w).permute(2, 0, 3, 1, 4).reshape(classes, rows * h, columns * w)
    down = interpolation(where.height, where.tops, window, h, size[0]).to(scores)
    across = interpolation(where.width, where.lefts, window, w, size[1]).to(scores)
    return Scores(mosaic, down, across)


def to_labels(scores, scale=None, threshold=None, others=0):
    """Label map of class scores (C, H, W) -> (H, W) int64.

    Without a threshold the best class. With one, 0 where the `probabilities` of all classes stay below it, the background; elsewhere 1 +
    the best class. others: how many of the last classes are background too, with a threshold or without.
    """
    if threshold is None:
        label = scores.max(0).indices  # faster than argmax, whose reduction over the first dimension is slow
        return torch.where(label < len(scores) - others, label + 1, 0) if others else label
    best, label = foreground(scores, scale)
    return torch.where((best < threshold) | (label > len(scores) - others), 0, label)


def foreground(scores, scale):
    """The best class against a background: its probability, and 1 + its index. scores (C, H, W) -> (H, W) both."""
    best, label = probabilities(scores, scale).max(0)
    return best, label + 1


def probabilities(scores, scale, dim=0):
    """softmax(scale * scores) over the classes, which lie along dim; scale of None: scores that are the softmax already."""
    return scores if scale is None else (scores * scale).softmax(dim)
