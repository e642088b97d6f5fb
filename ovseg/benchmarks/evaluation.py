"""Evaluate segmenters from cached features or from pictures; benchmarks over the same pictures (VOC 21 and VOC20) in one pass."""

from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..clip.encode import as_tensor, files_digest, open_cached
from ..data.files import digest
from ..segmentation.names import merged
from ..segmentation.windows import BACKGROUND, cut_windows, raw_labels, window_grid
from ..training import distributed
from . import datasets
from .miou import MeanIoU, mean


@dataclass
class Encoded:
    """A benchmark with the embeddings of its classes (see names.merged), and its cached windows' dense features, if any. threshold: the
    softmax score below which a pixel is background; None: the segmenter's own. made_with: digest of what its features were made with.
    Raises ValueError for a threshold without a background."""

    benchmark: datasets.BenchmarkBase
    classes: torch.Tensor
    windows: np.ndarray | None = None
    threshold: float | None = None
    made_with: str = ""

    def __post_init__(self):
        name, classes = self.benchmark.name, self.benchmark.classes
        if self.threshold is not None and not self.benchmark.background:
            raise ValueError(f"benchmark {name}: a threshold needs the class {BACKGROUND!r} first; the first class is {classes[0]!r}")

    def background_threshold(self, segmenter):
        """The softmax score below which a pixel is background; None without background."""
        threshold = segmenter.settings.threshold if self.threshold is None else self.threshold
        return threshold if self.benchmark.background else None

    def labels(self, scores, segmenter):
        """The label map of Scores on this benchmark."""
        return scores.labels(segmenter.scale, self.background_threshold(segmenter))


def open_suite(p, folder="data/features/benchmarks"):
    """Open the benchmarks of params.yaml with their cached features: a list of Encoded. p: Params. Raises
    FileNotFoundError if features are missing, and the errors of datasets.open_benchmarks and Encoded."""
    first, suite = {}, []
    for benchmark in datasets.open_benchmarks(p.benchmarks):
        pictures = first.setdefault(benchmark.source, benchmark.name)  # whose folder holds the windows of all with the same pictures
        classes = open_classes(benchmark, p.segment.synonyms, folder)
        arrays = [Path(folder) / pictures / f"{p.clip.dense}.npy"] if p.clip.cache_images else []
        windows = open_cached(arrays[0]) if arrays else None
        if classes is None or (windows is None and p.clip.cache_images):
            raise FileNotFoundError(f"benchmark {benchmark.name}: its features are not in {folder}: run `dvc repro benchmarks`")
        arrays.append(Path(folder) / benchmark.name / "classes.npy")
        pictures = files_digest([*benchmark.files, *benchmark.label_files])
        made_with = digest([pictures, *(path.with_suffix(".json").read_text(encoding="utf-8") for path in arrays)])
        suite.append(Encoded(benchmark, classes, windows, p.evaluate.thresholds.get(benchmark.name), made_with))
    return suite


def open_classes(benchmark, how, folder="data/features/benchmarks"):
    """The embeddings of a benchmark's classes (see names.merged) from those of their names, which `benchmarks` made; None if it did not."""
    names = open_cached(Path(folder) / benchmark.name / "classes.npy")
    return None if names is None else merged(as_tensor(names), benchmark.texts, how)


def open_clip(settings, device):
    """The FrozenCLIP that encodes pictures, or None if `benchmarks` cached their features. settings: schema.Clip. device: torch.device."""
    if not settings.cache_images:
        from ..clip.frozen import FrozenCLIP  # takes seconds to import

        return FrozenCLIP.open(settings, device)


def score_pictures(suite, segmenters, wanted=None):
    """Yields (PIL image, [label map per benchmark], [[Scores per benchmark] per segmenter]) for each picture. suite: list of
    Encoded over the same pictures. segmenters: share CLIP and windows; embeddings of a shared decoder are computed once. wanted:
    indices of the pictures to score; None: all. Those left out by a range with a step are not read if no windows are cached. Raises
    ValueError if the cached windows are not those of the pictures."""
    first, windows, row = segmenters[0], suite[0].windows, 0
    device = next(first.decoder.parameters()).device
    classes = [encoded.classes.to(device) for encoded in suite]
    changed = ValueError(f"benchmark {suite[0].benchmark.name}: the cached windows are of other pictures: run `dvc repro benchmarks`")
    begin, step = (wanted.start, wanted.step) if isinstance(wanted, range) and windows is None else (0, 1)
    read = zip(*(encoded.benchmark.part(begin, step) for encoded in suite), strict=True)
    for index, samples in zip(count(begin, step), read, strict=False):
        image, truths = samples[0][1], [labels for _, _, labels in samples]
        where = window_grid(image.height, image.width, first.settings)
        start, row = row, row + len(where.positions)
        if windows is not None and row > len(windows):
            raise changed
        if wanted is not None and index not in wanted:
            continue
        dense = first.encode(cut_windows(image, first.settings)[0]) if windows is None else as_tensor(windows[start:row], device)
        embeddings = {decoder: s.embed(dense) for decoder, s in {s.decoder: s for s in segmenters}.items()}
        scores = []
        for segmenter in segmenters:
            described = segmenter.describe(embeddings[segmenter.decoder])
            scores.append([segmenter.classify(described, where, named, truths[0].shape, image) for named in classes])
        yield image, truths, scores
    if windows is not None and row != len(windows):
        raise changed


def by_pictures(suite):
    """The Encoded of a suite in lists of those over the same pictures."""
    sources = dict.fromkeys(encoded.benchmark.source for encoded in suite)
    return [[encoded for encoded in suite if encoded.benchmark.source == source] for source in sources]


def evaluate(segmenters, suite):
    """{benchmark: {name: {class: IoU in percent}}}, None for a class that is neither in the truth nor predicted. suite: list of Encoded.
    segmenters: {name: Segmenter}, which may differ only in decoder and unit. Every process of a group calls this function: each scores
    every n-th picture, and their confusion matrices are added, so that the IoU is exactly that of one process."""
    ious = {encoded.benchmark.name: {name: MeanIoU(encoded.benchmark.classes) for name in segmenters} for encoded in suite}
    world = distributed.joined()
    for group in by_pictures(suite):
        title, own = ", ".join(encoded.benchmark.name for encoded in group), range(world.rank, len(group[0].benchmark), world.size)
        scored = score_pictures(group, list(segmenters.values()), own)
        for _, truths, scores in tqdm(scored, title, len(own), mininterval=2, disable=world.rank > 0):
            for (name, segmenter), of_benchmarks in zip(segmenters.items(), scores, strict=True):
                for encoded, truth, score in zip(group, truths, of_benchmarks, strict=True):
                    ious[encoded.benchmark.name][name].update(encoded.labels(score, segmenter), truth)
    device = next(next(iter(segmenters.values())).decoder.parameters()).device  # NCCL reads GPUs only
    for iou in (iou for by_name in ious.values() for iou in by_name.values()):
        iou.matrix = world.gather(torch.from_numpy(iou.matrix)[None].to(device)).sum(0).cpu().numpy()
    return {benchmark: {name: iou.compute() for name, iou in by_name.items()} for benchmark, by_name in ious.items()}


def encode_classes(segmenter, benchmark, threshold=None):
    """The Encoded of a benchmark whose pictures the segmenter's CLIP encodes."""
    return Encoded(benchmark, segmenter.embed_classes(tuple(benchmark.texts)), None, threshold)


def evaluate_folder(segmenter, benchmark, threshold=None):
    """Evaluate a segmenter, by its own unit, on a datasets.FolderBenchmark. threshold: see Encoded. Returns a dict: benchmark, pictures,
    unit, threshold (None without background), miou and iou {class: percent or None}."""
    encoded = encode_classes(segmenter, benchmark, threshold)
    iou = evaluate({"": segmenter}, [encoded])[benchmark.name][""]
    about = {"benchmark": str(benchmark.folder), "pictures": len(benchmark), "unit": segmenter.settings.unit}
    return about | {"threshold": encoded.background_threshold(segmenter), "miou": mean(iou), "iou": iou}


def at_quantiles(segmenter, encoded, quantiles, pictures=200):
    """Indices of the pictures at the given quantiles (0..1) of their own mIoU, among the first `pictures`."""
    values = []
    for _, (truth,), ((scores,),) in islice(score_pictures([encoded], [segmenter]), pictures):
        iou = MeanIoU(encoded.benchmark.classes)
        iou.update(encoded.labels(scores, segmenter), truth)
        values.append(mean(iou.compute()) or 0.0)
    order = np.argsort(values, kind="stable")
    return list(dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in quantiles))


def examples(segmenters, encoded, wanted, raw=False):
    """{index: [PIL image, truth, label map of each segmenter]} for the indices in wanted, in that order; the first picture if none exists.
    raw: the first segmenter's windows.raw_labels come before the label maps."""
    rows, wanted = {}, [index for index in wanted if index < len(encoded.benchmark)] or [0]
    for index, (image, (truth,), scores) in zip(sorted(set(wanted)), score_pictures([encoded], segmenters, wanted), strict=False):
        labels = [encoded.labels(score, segmenter) for segmenter, (score,) in zip(segmenters, scores, strict=True)]
        if raw:
            labels = [raw_labels(scores[0][0], segmenters[0].scale, encoded.background_threshold(segmenters[0])), *labels]
        rows[index] = [image, truth, *(label_map.cpu().numpy() for label_map in labels)]
    return {index: rows[index] for index in wanted}
