"""From an image and a list of names to a label map: sliding windows, units, class scores (MGCA §4.1, §4.2).

from ovseg import Segmenter
segmentation = Segmenter.load("models/mgca").segment(image, ["cat", "sofa"])
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import params, units
from .decoder import Decoder
from .images import rgb

BACKGROUND = "background"
ENTRIES = 1 << 23  # of scores at once: 32 MiB
LOCAL = "local-dir:"  # open_clip's prefix of a model in a folder


@dataclass(frozen=True)
class Layout:
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


def layout(height, width, settings):
    """The windows of an image of that size. settings: params.Segment."""
    scale = settings.short_side / min(height, width)
    height, width = max(settings.short_side, round(height * scale)), max(settings.short_side, round(width * scale))
    starts = (window_starts(side, settings.window, settings.stride) for side in (height, width))
    return Layout(height, width, *starts)


def cut(image, settings):
    """Cut an image into windows. image: PIL RGB. Returns (windows (n, window, window, 3) uint8, Layout).

    The shorter side is resized to settings.short_side (bicubic). What a window larger than the image lacks repeats the
    border; `stitch` drops it again.
    """
    where = layout(image.height, image.width, settings)
    if image.size != (where.width, where.height):
        image = image.resize((where.width, where.height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
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

    def labels(self, scale=None, threshold=None):
        """The label map (H, W), as `to_labels` of all rows, holding no more than ENTRIES scores at once."""
        labels = torch.empty(len(self.down), len(self.across), dtype=torch.int64, device=self.mosaic.device)
        for part in self.parts():
            labels[part] = to_labels(self.rows(part), scale, threshold)
        return labels


def stitch(scores, where, window, size):
    """Scores of windows to Scores of the picture, windows averaged where they overlap.

    scores (n, C, h, w), of the windows of where (Layout), each `window` pixels wide. size: (H, W) of the picture.
    """
    rows, columns = len(where.tops), len(where.lefts)
    n, classes, h, w = scores.shape
    mosaic = scores.view(rows, columns, classes, h, w).permute(2, 0, 3, 1, 4).reshape(classes, rows * h, columns * w)
    down = interpolation(where.height, where.tops, window, h, size[0]).to(scores)
    across = interpolation(where.width, where.lefts, window, w, size[1]).to(scores)
    return Scores(mosaic, down, across)


def to_labels(scores, scale=None, threshold=None):
    """Label map of class scores (C, H, W) -> (H, W) int64.

    Without a threshold the best class. With one, 0 where softmax(scale * scores) stays below it for every class: the
    background; 1 + the best class elsewhere.
    """
    if threshold is None:
        return scores.max(0).indices  # faster than argmax, whose reduction over the first dimension is slow
    best, label = foreground(scores, scale)
    return torch.where(best < threshold, 0, label)


def foreground(scores, scale):
    """The best class against a background: softmax(scale * scores) of it, and 1 + its index. scores (C, H, W) -> (H, W) both."""
    best, label = (scores * scale).softmax(0).max(0)
    return best, label + 1


@dataclass(frozen=True)
class Segmentation:
    """labels: (H, W) int64, indices into names. names: the classes; with a background it is names[0].

    scores: (C, H, W) float32, the cosine of each pixel's unit and each class, background left out: with one, scores[c] is
    that of names[c + 1]. Made when asked for: of a large photograph and many classes it takes gigabytes.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    grid: Scores

    @functools.cached_property
    def scores(self):
        return self.grid.rows().cpu().numpy()


class Segmenter:
    """An open-vocabulary segmenter: a frozen CLIP, a decoder, and the way from embeddings to labels.

    clip: FrozenCLIP, or None where only cached features are scored. decoder: Decoder; an untrained one hands CLIP's
    dense features on as they are, which makes this MaskCLIP, SCLIP, ... settings: params.Segment.
    """

    def __init__(self, clip, decoder, settings):
        if clip is not None and settings.window % clip.patch:
            raise ValueError(f"segment.window = {settings.window}: allowed are multiples of CLIP's patch, {clip.patch}")
        self.clip, self.decoder, self.settings = clip, decoder.eval(), settings

    @classmethod
    def load(cls, folder, device="auto"):
        """Load a trained model, its CLIP included.

        folder: e.g. "models/mgca", with decoder.safetensors and segmenter.json. device: auto, cpu or cuda.
        Raises FileNotFoundError if the folder holds no segmenter, or its CLIP is gone.
        """
        from .clip import FrozenCLIP  # open_clip takes seconds to import, and evaluation on cached features needs none

        folder = Path(folder)
        if not (folder / "segmenter.json").is_file():
            raise FileNotFoundError(f"{folder} holds no segmenter.json: expected the folder of a trained model, as `dvc repro` writes it")
        config = json.loads((folder / "segmenter.json").read_text())
        config["clip"].setdefault("dense", "maskclip")  # all there was when models did not say
        if config["clip"]["model"].startswith(LOCAL):
            config["clip"]["model"] = LOCAL + os.path.normpath(folder / config["clip"]["model"].removeprefix(LOCAL))
        device = params.device(device)
        clip = FrozenCLIP.open(params.Clip.model_validate(config["clip"]), device)
        decoder = Decoder.load(folder).to(device)
        return cls(clip, decoder, params.Segment.model_validate(config["segment"]))

    def save_settings(self, folder, clip_settings):
        """Write segmenter.json beside decoder.safetensors. clip_settings: params.Clip, which CLIP `load` is to open."""
        clip = clip_settings.model_dump()
        if clip["model"].startswith(LOCAL):  # relative to the folder, so that it loads from any working directory
            clip["model"] = LOCAL + os.path.relpath(clip["model"].removeprefix(LOCAL), folder)
        config = {"clip": clip, "segment": self.settings.model_dump()}
        (Path(folder) / "segmenter.json").write_text(json.dumps(config, indent=2) + "\n")

    def segment(self, image, names, background=False, threshold=None):
        """Segment an image into the named classes.

        image: PIL image of any size and mode, or (H, W, 3) or (H, W) uint8 array. names: two or more distinct class
        names. background: whether pixels may belong to no class; they get label 0, and names
        count from 1. threshold: 0..1, the softmax score below which a pixel is background; None: the settings' own.
        Returns Segmentation at the image's own size. Raises ValueError on an empty image or bad names, TypeError on
        anything that is no image.
        """
        names = [names] if isinstance(names, str) else list(names)
        if any(not isinstance(name, str) or not name.strip() for name in names):
            raise ValueError(f"names = {names!r}: allowed are non-empty strings")
        if len(set(names)) < len(names):
            raise ValueError(f"names = {names!r}: each class once")
        if len(names) < 2:  # the background's softmax too says nothing about one class alone
            raise ValueError(f"names = {names!r}: at least two classes")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold = {threshold}: allowed are 0 to 1")
        if background and BACKGROUND in names:
            raise ValueError("names: the background is no class of its own when background=True")
        image = as_image(image)
        classes = self.clip.embed_classes(names, self.settings.templates)
        windows, where = cut(image, self.settings)
        batches = (windows[start : start + self.settings.batch] for start in range(0, len(windows), self.settings.batch))
        parts = [self.classify(self.embed(self.clip.encode_dense(batch)), classes) for batch in batches]
        scores = stitch(torch.cat(parts), where, self.settings.window, (image.height, image.width))
        threshold = None if not background else self.settings.threshold if threshold is None else threshold
        labels = scores.labels(self.settings.scale, threshold)
        names = (BACKGROUND, *names) if background else tuple(names)
        return Segmentation(labels.cpu().numpy(), names, scores)

    @torch.no_grad()
    def embed(self, features):
        """Pixel embeddings of windows from their dense CLIP features. (n, d, h, w) -> (n, d, 2h, 2w)."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return torch.cat([self.decoder(batch).float() for batch in features.split(self.settings.batch)])

    @torch.no_grad()
    def classify(self, embeddings, classes):
        """Class scores of windows from their pixel embeddings: the cosine of each pixel's unit and each class.

        embeddings (n, d, h, w), classes (C, d), unit length. Returns (n, C, h, w).
        """
        s = self.settings
        recognised, _ = units.form(embeddings, s.unit, s.meta_points, s.groups, s.affinity)
        return torch.einsum("ndhw,cd->nchw", F.normalize(recognised, dim=1), classes)

    def score(self, embeddings, where, classes, size):
        """Class scores of an image: `classify` of all its windows, of where (Layout), stitched. size: (H, W). Returns Scores."""
        return stitch(self.classify(embeddings, classes), where, self.settings.window, size)

    def with_unit(self, unit, meta_points=None):
        """This segmenter with another semantic unit; CLIP and decoder are shared."""
        settings = self.settings.model_dump() | {"unit": unit} | ({} if meta_points is None else {"meta_points": meta_points})
        return Segmenter(self.clip, self.decoder, params.Segment.model_validate(settings))


def as_image(image):
    """A PIL RGB image of a PIL image, or of an (H, W, 3) or (H, W) uint8 array."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise TypeError(f"image: {image.dtype} array of shape {image.shape}; allowed are (H, W, 3) and (H, W) uint8")
        if 0 in image.shape:
            raise ValueError(f"image of shape {image.shape} is empty")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: {type(image).__name__}; allowed are a PIL image and an array")
    if 0 in image.size:
        raise ValueError(f"image of {image.width}x{image.height} pixels is empty")
    return rgb(image)
