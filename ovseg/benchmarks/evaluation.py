"""Evaluate segmenters on benchmarks, from cached features or directly from the pictures.

Benchmarks over the same pictures (VOC 21 and VOC20; things and scenes) are evaluated in one pass.
"""

import json
import statistics
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..clip import features
from ..segmentation.windows import cut_windows, window_grid
from . import datasets
from .miou import MeanIoU, mean


@dataclass
class Encoded:
    """A benchmark with its CLIP embeddings.

    classes: (C, d) embeddings of its class names, unit length. windows: dense features of all windows, or None if not cached.
    threshold: the softmax score below which a pixel is background; None: the segmenter's own.
    """

    benchmark: datasets.BenchmarkBase
    classes: torch.Tensor
    windows: np.ndarray | None
    threshold: float | None = None

    def labels(self, scores, segmenter):
        """The label map of Scores on this benchmark."""
        threshold = segmenter.settings.threshold if self.threshold is None else self.threshold
        return scores.labels(segmenter.scale, threshold if self.benchmark.background else None)


def open_suite(p, folder="data/features/benchmarks"):
    """Open the benchmarks that `encode` has encoded, as a list of Encoded, so that all runs are evaluated on the same benchmarks.

    p: Params. Raises FileNotFoundError if `encode` has not run, and ValueError if a benchmark, or a value that its features depend on, has
    changed since.
    """
    listing = Path(folder) / "suite.json"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} does not exist: `encode` makes it; run it first")
    suite, made_with, opened = json.loads(listing.read_text()), features.made_with(p.clip, p.segment), []
    for key, value in suite["made_with"].items():
        if made_with[key] != value:
            raise ValueError(f"{key} = {made_with[key]!r}: `encode` ran with {value!r}; run it again with this value")
    for name, fingerprint in suite["benchmarks"].items():
        if name not in p.benchmarks:
            raise ValueError(f"benchmark {name} is in {listing}, not among the benchmarks ({', '.join(p.benchmarks)}): run `encode` again")
        benchmark = datasets.open_benchmark(name, p.benchmarks[name])
        if benchmark.fingerprint != fingerprint:
            raise ValueError(f"benchmark {name} has changed since `encode` read it; run it again")
        datasets.check_thresholds([benchmark], p.evaluate.thresholds)
        classes = features.as_tensor(features.open_cached(f"{folder}/{name}/classes.npy"))
        windows = features.open_cached(f"{folder}/{name}/{p.clip.dense}.npy")
        opened.append(Encoded(benchmark, classes, windows, p.evaluate.thresholds.get(name)))
    return opened


def open_clip(settings, device):
    """Open the CLIP that encodes pictures, or return None if `encode` cached their features. settings: params' Clip."""
    if settings.cache_images:
        return None
    from ..clip.frozen import FrozenCLIP  # takes seconds to import

    return FrozenCLIP.open(settings, device)


def score_pictures(suite, segmenters, wanted=None):
    """Yields (PIL image, [label map per benchmark], [[Scores per benchmark] per segmenter]) for each picture.

    suite: list of Encoded over the same pictures. segmenters: share CLIP and windows; embeddings of a shared decoder are
    computed once. wanted: indices of the pictures to score; None: all. Scores have the size of the label maps.
    """
    first, windows, row = segmenters[0], suite[0].windows, 0
    device = next(first.decoder.parameters()).device
    classes = [encoded.classes.to(device) for encoded in suite]
    changed = ValueError(f"benchmark {suite[0].benchmark.name} has changed since `encode` read it; run it again")
    for index, samples in enumerate(zip(*(encoded.benchmark for encoded in suite), strict=True)):
        image, truths = samples[0][1], [labels for _, _, labels in samples]
        if wanted is not None and index not in wanted:
            row += len(window_grid(image.height, image.width, first.settings).positions)
            continue
        if windows is None:
            pixels, where = cut_windows(image, first.settings)
            dense = first.encode(pixels)
        else:
            where = window_grid(image.height, image.width, first.settings)
            row, start = row + len(where.positions), row
            if row > len(windows):
                raise changed
            dense = features.as_tensor(windows[start:row], device)
        embeddings = {decoder: s.embed(dense) for decoder, s in {s.decoder: s for s in segmenters}.items()}
        scores = []
        for segmenter in segmenters:
            described = segmenter.describe(embeddings[segmenter.decoder])
            scores.append([segmenter.classify(described, where, named, truths[0].shape) for named in classes])
        yield image, truths, scores
    if windows is not None and row != len(windows):
        raise changed


def evaluate(segmenters, suite):
    """IoU of each class on each benchmark.

    segmenters: {name: Segmenter}, which may differ only in decoder and unit. suite: list of Encoded. Returns {benchmark: {name: {class:
    IoU in percent}}}, None for a class that is neither in the truth nor predicted.
    """
    by_source = {}
    for encoded in suite:
        by_source.setdefault(encoded.benchmark.source, []).append(encoded)
    found = dict.fromkeys(encoded.benchmark.name for encoded in suite)  # in their order
    for group in by_source.values():
        ious = [{name: MeanIoU(encoded.benchmark.classes) for name in segmenters} for encoded in group]
        title = ", ".join(encoded.benchmark.name for encoded in group)
        scored = score_pictures(group, list(segmenters.values()))
        for _, truths, scores in tqdm(scored, title, len(group[0].benchmark), mininterval=2):
            for (name, segmenter), of_benchmarks in zip(segmenters.items(), scores, strict=True):
                for encoded, iou, truth, score in zip(group, ious, truths, of_benchmarks, strict=True):
                    iou[name].update(encoded.labels(score, segmenter), truth)
        for encoded, iou in zip(group, ious, strict=True):
            found[encoded.benchmark.name] = {name: matrix.compute() for name, matrix in iou.items()}
    return found


def at_quantiles(segmenter, encoded, quantiles, pictures=200):
    """Choose pictures to show: the indices of those at the given quantiles (0..1) of mIoU among the first `pictures`.

    The mIoU of a picture is over the classes present in its truth or its label map.
    """
    values = []
    for _, (truth,), ((scores,),) in islice(score_pictures([encoded], [segmenter]), pictures):
        iou = MeanIoU(encoded.benchmark.classes)
        iou.update(encoded.labels(scores, segmenter), truth)
        values.append(mean(iou.compute()) or 0.0)
    order = np.argsort(values, kind="stable")
    return list(dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in quantiles))


def examples(segmenters, encoded, wanted):
    """Pictures to show: a list of [PIL image, truth, label map of each segmenter] for the indices in wanted, in that order.

    Indices beyond the last picture are left out; if none is left, the first picture is used.
    """
    rows = {}
    wanted = [index for index in wanted if index < len(encoded.benchmark)] or [0]
    for index, (image, (truth,), scores) in zip(sorted(set(wanted)), score_pictures([encoded], segmenters, wanted), strict=False):
        labels = [encoded.labels(score, segmenter) for segmenter, (score,) in zip(segmenters, scores, strict=True)]
        rows[index] = [image, truth, *(of_segmenter.cpu().numpy() for of_segmenter in labels)]
    return [rows[index] for index in wanted]


def images_a_second(segmenter, encoded, pictures=8):
    """Pictures per second of a segmenter with its CLIP, from the picture in memory to the label map.

    Uses the median time of the benchmark's first `pictures`, one after another, after one warm-up on the first picture.
    """
    images = [image for _, image, _ in islice(encoded.benchmark, pictures)]
    names = [name for name in encoded.benchmark.classes if name != datasets.BACKGROUND]
    spent = []
    for image in images[:1] + images:
        started = time.perf_counter()
        segmenter.segment(image, names, background=encoded.benchmark.background)  # label maps are on the CPU, so the GPU has finished
        spent.append(time.perf_counter() - started)
    return 1 / statistics.median(spent[1:])


def first_window(segmenter, encoded):
    """The first window of a benchmark's first picture: (S, S, 3) uint8, and its pixel embeddings (1, d, h, w)."""
    _, image, _ = next(iter(encoded.benchmark))
    windows, _ = cut_windows(image, segmenter.settings)
    if encoded.windows is None:
        return windows[0], segmenter.embed(segmenter.encode(windows[:1]))
    return windows[0], segmenter.embed(features.as_tensor(encoded.windows[:1], next(segmenter.decoder.parameters()).device))
