"""What a run computes for one picture, step by step, so that each step can be shown.

A picture is cut into windows. Where they overlap, a map of pixel embeddings shows those of the window with the nearest centre; embeddings
are never mixed. With one window, all embeddings are shown. Scores are the segmenter's, averaged over windows.
"""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..benchmarks.layouts import IGNORED
from ..methods import mgca
from ..segmentation import units
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import BACKGROUND, cut_windows, probabilities

RIGHT, WRONG, NOT_JUDGED = 0, 1, 2


class Units(NamedTuple):
    """The semantic units of a picture's n windows of (h, w) pixel embeddings."""

    descriptions: torch.Tensor  # (n, d, h, w): for each pixel the mean of its unit, unit length
    of_windows: torch.Tensor  # (n, h, w): the unit of each pixel in its window
    ids: np.ndarray  # (H, W): the unit of each shown pixel, distinct across windows
    points: np.ndarray  # (P, 2): row and column of the shown meta-points; empty for other units


class Texts:
    """Text embeddings of a segmenter, each computed once. names: the classes of a call, embedded with its prompts (segment.templates)."""

    def __init__(self, segmenter):
        clip, self.templates = segmenter.clip, segmenter.settings.templates
        self.of_class = functools.cache(lambda name: clip.embed_classes([name], self.templates)[0])  # (d,), unit length
        self.of_prompts = functools.cache(lambda *prompts: clip.encode_text(prompts).mean(0))  # (d,), not normalised

    def classes(self, names):
        """(C, d), unit length."""
        return torch.stack([self.of_class(name) for name in names])

    def raw(self, text, names):
        """A text's embedding in the losses, (d,), not normalised: for a class in names the mean over prompts, else the text's own."""
        return self.of_prompts(*([template.format(text) for template in self.templates] if text in names else [text]))

    def unit(self, text, names):
        """The embedding that scores pixels for a text, (d,), unit length: for a class in names its class embedding, else the text's own."""
        return self.of_class(text) if text in names else F.normalize(self.of_prompts(text), dim=0)


class View:
    """A picture as a segmenter sees it. Its pixel embeddings are computed once.

    segmenter: Segmenter with a CLIP. texts: its Texts. image: PIL RGB. side: None uses the segmenter's own windows, as in evaluation;
    otherwise one window of side x side pixels, as in training. where: WindowGrid. pixels: (H, W, d), the shown embeddings.
    """

    def __init__(self, segmenter, texts, image, side=None):
        if side is not None:
            settings = segmenter.settings.model_copy(update={"short_side": side, "window": side})
            segmenter = Segmenter(segmenter.clip, segmenter.decoder, settings, segmenter.grouping)
        self.segmenter, self.texts = segmenter, texts
        windows, self.where = cut_windows(image, segmenter.settings)
        self.embeddings = segmenter.embed(segmenter.encode(windows))  # n, d, h, w
        side = self.embeddings.shape[-1]
        size = segmenter.settings.window / side  # side of an embedding in pixels

        def nearest(length, starts):
            """Along one side of the picture: the windows of the shown embeddings, and their places there."""
            centres = (torch.arange(max(1, round(length / size))) + 0.5) * size
            first = torch.tensor(starts, dtype=centres.dtype)
            index = (centres[:, None] - (first + segmenter.settings.window / 2)).abs().argmin(1)
            return index, ((centres - first[index]) / size).long().clamp(0, side - 1)

        (down, row), (across, column) = nearest(self.where.height, self.where.tops), nearest(self.where.width, self.where.lefts)
        # The embedding shown at each place, as indices (H, W): its window, and row and column in it.
        self.cells = torch.broadcast_tensors(down[:, None] * len(self.where.lefts) + across, row[:, None], column)
        self.pixels = self.embeddings.movedim(1, -1)[self.cells]

    def select(self, text, other, names, alpha, beta, k):
        """What the losses select for a text and another one, from mgca.correspondences. names: see Texts. alpha, beta, k: shares, 0..1.

        Returns a dict: similarity (H, W), S = V.t; object (H, W) bool, the top alpha*L pixels; positive, the (row, column) of rank k*L;
        region (H, W) bool, the top beta*L pixels for the other text, its hard negative region.
        """
        shape, shares = self.pixels.shape[:2], SimpleNamespace(alpha=alpha, beta=beta, k=k)
        texts = torch.stack([self.texts.raw(text, names), self.texts.raw(other, names)])
        pixels = self.pixels.flatten(0, 1).expand(2, -1, -1)  # a batch of two pairs: the picture with each text
        selected = mgca.correspondences(pixels, texts, ~torch.eye(2, dtype=torch.bool, device=texts.device), shares)
        maps = {name: selected[name][0].view(shape).cpu().numpy() for name in ("similarity", "object", "region")}
        return maps | {"positive": divmod(int(selected["positive"][0]), shape[1])}

    @torch.no_grad()
    def form(self, unit, meta_points):
        """The Units of the picture. unit: as in units.form; learned-group needs a segmenter that has them. meta_points: a square number."""
        s = self.segmenter.settings
        means, of_windows = units.form(self.embeddings, unit, meta_points, s.groups, s.affinity, self.segmenter.grouping)
        marked = torch.zeros(of_windows.shape, dtype=torch.bool)
        if unit == "meta-point":
            marked.flatten(1)[:, units.meta_points(*of_windows.shape[1:], meta_points)] = True
        ids = of_windows.cpu()[self.cells] + self.cells[0] * (int(of_windows.max()) + 1)
        return Units(F.normalize(means, dim=1), of_windows, ids.numpy(), marked[self.cells].nonzero().numpy())

    def score(self, formed, names, size):
        """Class scores of names, as Segmenter.classify gives them. formed: Units. size: (H, W) of the scores."""
        return self.segmenter.classify(formed.descriptions, self.where, self.texts.classes(names), size)

    def unit_scores(self, formed, text, names):
        """The cosine between each shown pixel's unit and a text: (H, W). names: see Texts."""
        return (formed.descriptions.movedim(1, -1)[self.cells] @ self.texts.unit(text, names)).cpu().numpy()

    def explain(self, formed, scores, names, click, best=5):
        """Why a pixel has its label. scores: `score` of names. click: (down, across), shares of the picture's sides, below 1.

        Returns its window, its unit there, the unit's number of pixels, and its best texts, (name, score, softmax share, unit's cosine).
        """
        row, column = (int(share * side) for share, side in zip(click, formed.ids.shape, strict=True))
        window, y, x = (int(part[row, column]) for part in self.cells)
        line, column = int(click[0] * len(scores.down)), int(click[1] * len(scores.across))
        of_pixel = scores.rows(slice(line, line + 1))[:, 0, column]
        cosines = self.texts.classes(names) @ formed.descriptions[window, :, y, x]
        order = of_pixel.argsort(descending=True)[:best].tolist()
        values = torch.stack([of_pixel, probabilities(of_pixel, self.segmenter.scale), cosines], 1)[order].tolist()
        unit = int(formed.of_windows[window, y, x])
        texts = [(names[i], *of_text) for i, of_text in zip(order, values, strict=True)]
        return window, unit, int((formed.of_windows[window] == unit).sum()), texts


def errors(labels, names, truth, classes):
    """Where a label map is wrong: (H, W) uint8 of RIGHT, WRONG and NOT_JUDGED.

    labels (H, W): indices into names. truth (H, W): indices into classes, or IGNORED. A class that is not in names counts as background
    if names include it, and is not judged otherwise.
    """
    index = {name.lower(): place for place, name in enumerate(names)}
    expected = [index.get(name.lower(), index.get(BACKGROUND, -1)) for name in classes]
    expected = np.array(expected + [-1] * (IGNORED + 1 - len(classes)))[truth]
    return np.where(expected < 0, NOT_JUDGED, np.where(expected == labels, RIGHT, WRONG)).astype(np.uint8)
