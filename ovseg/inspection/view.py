"""What a run computes for one picture, step by step, so that each step can be shown.

A picture is cut into windows. Where they overlap, a map of pixel embeddings shows those of the window with the nearest centre; embeddings
are never mixed. With one window, all embeddings are shown. Scores are the segmenter's, averaged over windows.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch

from ..benchmarks.layouts import IGNORED
from ..methods import mgca as method
from ..segmentation import units
from ..segmentation.windows import BACKGROUND, cut_windows, probabilities

RIGHT, WRONG, NOT_JUDGED = 0, 1, 2


class Selection(NamedTuple):
    """What the losses select in a picture of (H, W) pixel embeddings, for its text and another one."""

    similarity: torch.Tensor  # (H, W), S = V . t
    object: torch.Tensor  # (H, W) bool, the top alpha*L pixels for the text
    positive: tuple[int, int]  # (row, column) of the pixel of rank k*L for the text
    best: tuple[int, int]  # (row, column) of the pixel of rank 1
    region: torch.Tensor  # (H, W) bool, the top beta*L pixels for the other text: its hard negative region


class Units(NamedTuple):
    """The semantic units of a picture's n windows of (h, w) pixel embeddings."""

    descriptions: torch.Tensor  # (n, d, h, w): for each pixel the mean of its unit, unit length
    of_windows: torch.Tensor  # (n, h, w): the unit of each pixel in its window
    ids: torch.Tensor  # (H, W): the unit of each shown pixel, distinct across windows
    points: np.ndarray | None  # (P, 2): row and column of the shown meta-points; None for other units


class Explanation(NamedTuple):
    """Why a pixel has its label."""

    unit: int
    window: int
    size: int  # number of pixels of its window in its unit
    texts: list  # (name, score, softmax share, cosine of its unit), best first


class Cells(NamedTuple):
    """The embedding shown at each position: window index, and row and column in it, each (H, W)."""

    window: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


def cells(where, window, side):
    """The Cells of a picture. where: WindowGrid. window: side of a window in pixels. side: side of a window in pixel embeddings."""
    size = window / side  # side of an embedding in pixels

    def along(length, starts):
        centres = (torch.arange(max(1, round(length / size))) + 0.5) * size
        first = torch.tensor(starts, dtype=centres.dtype)
        nearest = (centres[:, None] - (first + window / 2)).abs().argmin(1)
        return nearest, ((centres - first[nearest]) / size).long().clamp(0, side - 1)

    (down, row), (across, column) = along(where.height, where.tops), along(where.width, where.lefts)
    rows, columns = len(row), len(column)
    index = down[:, None] * len(where.lefts) + across
    return Cells(index, row[:, None].expand(rows, columns), column.expand(rows, columns))


def count(share, length):
    """The number of pixels that a share of `length` stands for, as in the losses."""
    return method.top_count(share, length)


class View:
    """A segmenter's view of a picture. Features and pixel embeddings are computed once.

    segmenter: Segmenter with a CLIP. image: PIL RGB. side: None uses the segmenter's own windows, as in evaluation; otherwise one window
    of side x side pixels, as in training.
    """

    def __init__(self, segmenter, image, side=None):
        settings = segmenter.settings
        if side is not None:
            settings = settings.model_copy(update={"short_side": side, "window": side})
        self.segmenter = _with(segmenter, settings)
        windows, self.where = cut_windows(image, settings)
        self.embeddings = self.segmenter.embed(self.segmenter.encode(windows)).cpu()  # n, d, h, w
        self.cells = cells(self.where, settings.window, self.embeddings.shape[-1])
        self.pixels = self._shown(self.embeddings.movedim(1, -1))  # H, W, d

    def _shown(self, maps):
        """The shown part of the maps of all windows, (n, h, w, ...) -> (H, W, ...)."""
        return maps[tuple(self.cells)]

    def select(self, text, other, alpha, beta, k):
        """What the losses select, as a Selection. text, other: (d,), not normalised. alpha, beta, k: shares, 0..1."""
        height, width, _ = self.pixels.shape

        def top(similarity, share):
            order = similarity.flatten().topk(count(share, height * width)).indices
            return order, torch.zeros(height * width, dtype=torch.bool).index_fill(0, order, True).view(height, width)

        similarity = self.pixels @ text
        order, mask = top(similarity, alpha)
        ranked, _ = top(similarity, k)
        _, region = top(self.pixels @ other, beta)
        return Selection(similarity, mask, divmod(int(ranked[-1]), width), divmod(int(order[0]), width), region)

    def form(self, unit, meta_points):
        """The Units of the picture. unit: as in units.form; learned-group needs a segmenter that has them. meta_points: a square number."""
        s = self.segmenter.settings.model_copy(update={"unit": unit, "meta_points": meta_points})
        _, of_windows = units.form(self.embeddings, s.unit, s.meta_points, s.groups, s.affinity, self.segmenter.grouping)  # n, h, w
        height, width = of_windows.shape[1:]
        points = None
        if unit == "meta-point":
            marked = torch.zeros(height * width, dtype=torch.bool).index_fill(0, units.meta_points(height, width, meta_points), True)
            points = self._shown(marked.view(1, height, width).expand(len(of_windows), -1, -1)).nonzero().numpy()
        ids = self._shown(of_windows) + self.cells.window * (int(of_windows.max()) + 1)
        return Units(_with(self.segmenter, s).describe(self.embeddings), of_windows, ids, points)

    def score(self, formed, classes, size=None):
        """Class scores, as Segmenter.classify gives them. classes (C, d), unit length. size: (H, W); None: the picture's, resized."""
        size = size or (self.where.height, self.where.width)
        return self.segmenter.classify(formed.descriptions, self.where, classes, size)

    def unit_scores(self, formed, text):
        """The cosine between each shown pixel's unit and a text (d,) of unit length: (H, W)."""
        return self._shown(formed.descriptions.movedim(1, -1)) @ text

    def explain(self, formed, scores, names, classes, down, across, best=5):
        """Why the pixel at (down, across), shares of the picture's height and width, has its label: an Explanation.

        scores: from `score`, for the embeddings classes (C, d) of the C names.
        """
        row, column = (min(int(share * length), length - 1) for share, length in zip((down, across), formed.ids.shape, strict=True))
        window, y, x = (int(part[row, column]) for part in self.cells)
        cosines = classes @ formed.descriptions[window, :, y, x]
        line, place = (min(int(share * len(side)), len(side) - 1) for share, side in ((down, scores.down), (across, scores.across)))
        found = scores.rows(slice(line, line + 1))[:, 0, place]
        chances = probabilities(found, self.segmenter.scale)
        order = found.argsort(descending=True)[:best].tolist()
        texts = [(names[i], found[i].item(), chances[i].item(), cosines[i].item()) for i in order]
        unit = int(formed.of_windows[window, y, x])
        return Explanation(unit, window, int((formed.of_windows[window] == unit).sum()), texts)


def _with(segmenter, settings):
    """A copy of the segmenter with other settings."""
    other = copy.copy(segmenter)
    other.settings = settings
    return other


class Texts:
    """Text embeddings of one CLIP, each computed once. templates: prompts for class names."""

    def __init__(self, clip, templates):
        self.clip, self.templates, self._classes, self._raw = clip, templates, {}, {}

    def classes(self, names):
        """Like FrozenCLIP.embed_classes: (C, d), unit length."""
        if new := [name for name in dict.fromkeys(names) if name not in self._classes]:
            self._classes |= zip(new, self.clip.embed_classes(new, self.templates).cpu(), strict=True)
        return torch.stack([self._classes[name] for name in names])

    def raw(self, text, names):
        """A text's embedding in the losses, (d,), not normalised: for a class in names the mean over prompts, else the text's own."""
        key = (text, text in names)
        if key not in self._raw:
            prompts = [template.format(text) for template in self.templates] if key[1] else [text]
            self._raw[key] = self.clip.encode_text(prompts).mean(0).cpu()
        return self._raw[key]

    def unit(self, text, names):
        """The embedding that scores pixels for a text, (d,), unit length: for a class in names its class embedding, else the text's own."""
        return self.classes([text])[0] if text in names else torch.nn.functional.normalize(self.raw(text, names), dim=0)


def errors(labels, names, truth, classes):
    """Where a label map is wrong: (H, W) uint8 of RIGHT, WRONG and NOT_JUDGED.

    labels (H, W): indices into names. truth (H, W): indices into classes, or IGNORED. A class that is not in names counts as background
    if names include it, and is not judged otherwise.
    """
    place = {name.lower(): index for index, name in enumerate(names)}
    wanted = np.full(IGNORED + 1, -1)
    wanted[: len(classes)] = [place.get(name.lower(), place.get(BACKGROUND, -1)) for name in classes]
    wanted[IGNORED] = -1
    expected = wanted[np.asarray(truth)]
    return np.where(expected < 0, NOT_JUDGED, np.where(expected == np.asarray(labels), RIGHT, WRONG)).astype(np.uint8)
