"""Runs and pictures of a project, and what a run computes for a picture, step by step, so that each step can be shown.

Where windows of a picture overlap, a map of pixel embeddings shows those of the window with the nearest centre; embeddings are never mixed.
Scores are the segmenter's, averaged over windows.
"""

import copy
import functools
import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from .. import params
from ..benchmarks.datasets import open_benchmark
from ..benchmarks.layouts import IGNORED, ignored
from ..clip.frozen import FrozenCLIP
from ..data import preparation, shards
from ..data.images import center_crop, read_label_map
from ..methods import mgca
from ..segmentation import published, units
from ..segmentation.names import all_names, merged, synonyms
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import BACKGROUND, cut_windows, probabilities
from ..training.decoder import Decoder

RIGHT, WRONG, NOT_JUDGED = 0, 1, 2
SIZE = 320  # pixels, the longer side of a picture in a panel
NO_TRUTH = np.full((SIZE, SIZE), IGNORED, np.uint8)


class Picture:
    """A picture to inspect. image: PIL RGB. truth: (H, W) indices into classes (names), or IGNORED; of another size if nothing is known.
    caption, side (pixels in training): of a training pair, else "" and None. small: the image in the size of a panel."""

    def __init__(self, image, title, truth=NO_TRUTH, classes=(), caption="", side=None):
        self.image, self.title, self.truth, self.classes, self.caption, self.side = image, title, truth, tuple(classes), caption, side
        self.small = np.asarray(ImageOps.contain(image, (SIZE, SIZE), Image.Resampling.LANCZOS))  # (H, W, 3) uint8


def open_run(name, p, models, clips=()):
    """The Segmenter of a run (its seed 0): of a folder in `models`, of an untrained dense mode, by `clip` and `segment` of p, or of one of
    clips, published ones as in published.parse."""
    if name in clips:
        return Segmenter.untrained(*published.parse(name), device=p.device)
    if name not in p.ablations.untrained:
        return Segmenter.load(Path(models) / name, p.device)
    clip = FrozenCLIP.open(p.clip.model_copy(update={"dense": name}), params.device(p.device))
    return Segmenter(clip, Decoder(clip.width).to(clip.device), p.segment)


def benchmark_picture(benchmark, index):
    """Picture `index` of an opened benchmark. Shards are read from the beginning."""
    if index >= len(benchmark):
        raise ValueError(f"picture {index} of {benchmark.name}: must be between 0 and {len(benchmark) - 1}")
    few = copy.copy(benchmark)
    few.samples = functools.partial(benchmark.samples, max(1, index))  # pictures 0, index, ...: no others are decoded
    _, image, truth = next(itertools.islice(few, min(1, index), None))
    return Picture(image, f"{benchmark.name}, picture {index}", truth, benchmark.classes)


def training_pair(p, index, folder):
    """Training pair `index`, cropped as in training. p: Params. Its truth: the last benchmark's label map in its sample, if any."""
    keys = preparation.load_keys(folder)
    if index >= len(keys):
        raise ValueError(f"training pair {index}: must be between 0 and {len(keys) - 1}")
    shard, key = keys[index].split("/", 1)
    path = next(path for path in preparation.load_paths(folder) if Path(path).stem == shard)
    sample = next((sample for sample in shards.read_samples(path) if sample["__key__"] == key), None)
    if sample is None:
        raise ValueError(f"{keys[index]} is not in {path}: the shards have changed since `prepare`; run it again")
    image, caption = shards.decode(sample)
    side, truth, classes = p.clip.image_size, NO_TRUTH, ()
    for name, settings in p.benchmarks.items():  # samples of the rendered world hold the label maps of its benchmarks
        if settings.label in sample:
            labels = read_label_map(io.BytesIO(sample[settings.label]))
            truth, classes = center_crop(labels, side, Image.Resampling.NEAREST), open_benchmark(name, settings).classes
    return Picture(Image.fromarray(center_crop(image, side)), f"training pair {index}", truth, classes, caption, side)


class Texts:
    """A segmenter and its embeddings of texts, each computed once. A class is embedded with its prompts (segment.templates)."""

    def __init__(self, segmenter):
        self.segmenter, clip, templates = segmenter, segmenter.clip, segmenter.settings.templates
        self.of_class = functools.cache(lambda name: merged(clip.embed_classes(synonyms(name), templates), [name], "mean")[0])  # (d,)
        self.raw = functools.cache(  # (d,), not normalised, as in the losses
            lambda text, is_class=False: clip.encode_text([template.format(text) for template in templates] if is_class else [text]).mean(0)
        )


class View:
    """A Picture as the segmenter of Texts sees it: one with a side is one window of that size, as in training; others have the segmenter's
    own windows. where: WindowGrid. pixels: (H, W, d), the shown embeddings. In the methods, a text in `names` is a class."""

    def __init__(self, texts, picture):
        segmenter = texts.segmenter
        if picture.side is not None:
            settings = segmenter.settings.model_copy(update={"short_side": picture.side, "window": picture.side})
            segmenter = Segmenter(segmenter.clip, segmenter.decoder, settings, segmenter.grouping)
        self.segmenter, self.texts, self.picture = segmenter, texts, picture
        windows, self.where = cut_windows(picture.image, segmenter.settings)
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
        self.select, self.label = (functools.lru_cache(1)(method) for method in (self.select, self.label))  # a control changes one of them

    def select(self, text, other, names, alpha, beta, k):
        """What the losses select, from mgca.correspondences: a dict of similarity S = V.t (H, W), object (H, W) bool, its top alpha*L
        pixels, positive, the (row, column) of rank k*L, and region (H, W) bool, the top beta*L pixels for the other text."""
        shape, shares = self.pixels.shape[:2], SimpleNamespace(alpha=alpha, beta=beta, k=k)
        texts = torch.stack([self.texts.raw(name, name in names) for name in (text, other)])
        pixels = self.pixels.flatten(0, 1).expand(2, -1, -1)  # a batch of two pairs: the picture with each text
        selected = mgca.correspondences(pixels, texts, ~torch.eye(2, dtype=torch.bool, device=texts.device), shares)
        maps = {name: selected[name][0].view(shape).cpu().numpy() for name in ("similarity", "object", "region")}
        return maps | {"positive": divmod(int(selected["positive"][0]), shape[1])}

    @torch.no_grad()
    def label(self, unit, meta_points, names, others=(), threshold=None):
        """The units that units.form makes, their Scores of names and others, and the label map in the size of the truth. threshold: None
        without a background. The units have descriptions (n, d, h, w), for each pixel the mean of its unit, unit length; of_windows
        (n, h, w), its unit in its window; ids (H, W), the units of shown pixels, distinct across windows; and points (P, 2), row and column
        of the shown meta-points, if there are any."""
        s = self.segmenter.settings
        means, of_windows = units.form(self.embeddings, unit, meta_points, s.groups, s.affinity, self.segmenter.grouping)
        marked = torch.zeros(of_windows.shape, dtype=torch.bool)
        if unit == "meta-point":
            marked.flatten(1)[:, units.meta_points(*of_windows.shape[1:], meta_points)] = True
        ids = of_windows.cpu()[self.cells] + self.cells[0] * (int(of_windows.max()) + 1)
        formed = SimpleNamespace(descriptions=F.normalize(means, dim=1), of_windows=of_windows, ids=ids.numpy())
        formed.points = marked[self.cells].nonzero().numpy()
        listed = (*names, *others)
        classes = merged(torch.stack([self.texts.of_class(name) for name in all_names(listed)]), listed, s.synonyms)
        scores = self.segmenter.classify(formed.descriptions, self.where, classes, self.picture.truth.shape, self.picture.image)
        return formed, scores, scores.labels(self.segmenter.scale, threshold, len(others)).cpu().numpy()

    def unit_scores(self, formed, text, names):
        """The cosine between each shown pixel's unit and a text: (H, W). formed: units, from `label`."""
        embedding = self.texts.of_class(text) if text in names else F.normalize(self.texts.raw(text), dim=0)
        return (formed.descriptions.movedim(1, -1)[self.cells] @ embedding).cpu().numpy()

    def explain(self, formed, scores, names, click, best=5):
        """Why a pixel has its label: its window, its unit there, the unit's number of pixels, and its best texts, (name, score, softmax
        share, unit's cosine). scores: those of names. click: (down, across), shares of the picture's sides, below 1."""
        row, column = (int(share * side) for share, side in zip(click, formed.ids.shape, strict=True))
        window, y, x = (int(part[row, column]) for part in self.cells)
        line, column = int(click[0] * len(scores.down)), int(click[1] * len(scores.across))
        of_pixel = scores.rows(slice(line, line + 1))[:, 0, column]
        cosines = torch.stack([self.texts.of_class(name) for name in names]) @ formed.descriptions[window, :, y, x]
        values = torch.stack([of_pixel, probabilities(of_pixel, self.segmenter.scale), cosines], 1).tolist()
        order, unit = of_pixel.argsort(descending=True)[:best].tolist(), int(formed.of_windows[window, y, x])
        return window, unit, int((formed.of_windows[window] == unit).sum()), [(names[i], *values[i]) for i in order]


def errors(labels, names, truth, classes):
    """Where labels (H, W), indices into names, are wrong by truth, indices into classes or IGNORED: RIGHT, WRONG, NOT_JUDGED. A class that
    is not in names counts as background if names include it, and is not judged otherwise."""
    index = {name.lower(): place for place, name in enumerate(names)}
    expected = [index.get(name.lower(), index.get(BACKGROUND, -1)) for name in classes]
    expected = np.array(expected + [-1] * (ignored(len(classes)) + 1 - len(classes)))[truth]
    return np.where(expected < 0, NOT_JUDGED, np.where(expected == labels, RIGHT, WRONG)).astype(np.uint8)
