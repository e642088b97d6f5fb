"""Evaluating a segmenter on a benchmark, from cached features or from the pictures themselves."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..clip import features
from ..segmentation.windows import cut_windows, window_grid
from . import datasets


@dataclass
class Encoded:
    """A benchmark with what CLIP says of it: class embeddings (C, d), and dense features of all windows, or None."""

    benchmark: datasets.BenchmarkBase
    classes: torch.Tensor
    windows: np.ndarray | None

    @classmethod
    def open(cls, benchmark, folder, dense):
        """What encoding.encode_benchmarks cached in folder. dense: of dense.DENSE_MODES."""
        classes = torch.from_numpy(np.load(f"{folder}/{benchmark.name}/classes.npy"))
        return cls(benchmark, classes, features.open_cached(f"{folder}/{benchmark.name}/{dense}.npy"))

    def pictures(self, segmenters):
        """Yields (key, PIL image, label map, [Scores of each segmenter]) for each picture.

        Scores are at the label map's size. The segmenters share CLIP and windows; what they share of the rest is computed once.
        """
        row = 0
        first = segmenters[0]
        device = next(first.decoder.parameters()).device
        classes = self.classes.to(device)
        for key, image, labels in self.benchmark:
            if self.windows is None:
                windows, where = cut_windows(image, first.settings)
                batch = first.settings.batch
                parts = [first.clip.encode_dense(windows[i : i + batch]) for i in range(0, len(windows), batch)]
                dense = torch.cat(parts)
            else:
                where = window_grid(image.height, image.width, first.settings)
                row, start = row + len(where.positions), row
                if row > len(self.windows):
                    raise self._changed()
                dense = features.as_tensor(self.windows[start:row], device)
            embeddings = {decoder: s.embed(dense) for decoder, s in {s.decoder: s for s in segmenters}.items()}
            yield key, image, labels, [s.score(embeddings[s.decoder], where, classes, labels.shape) for s in segmenters]
        if self.windows is not None and row != len(self.windows):
            raise self._changed()

    def _changed(self):
        return ValueError(f"benchmark {self.benchmark.name} has changed since `encode` read it; run it again")


def open_suite(settings, folder, dense, made_with):
    """The benchmarks that `encode` found, as Encoded, so that all runs are evaluated on the same.

    settings: params' benchmarks. folder, dense: as of Encoded.open. made_with: of features.made_with. Raises ValueError if a
    benchmark or a value is not what it was then.
    """
    listing = Path(folder) / "suite.json"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} does not exist: `encode` makes it; run it first")
    suite, opened = json.loads(listing.read_text()), []
    for key, value in suite["made_with"].items():
        if made_with[key] != value:
            raise ValueError(f"{key} = {made_with[key]!r}: `encode` ran with {value!r}; run it again with this value")
    for name, fingerprint in suite["benchmarks"].items():
        if name not in settings:
            raise ValueError(f"benchmark {name} is in {listing}, not among the benchmarks ({', '.join(settings)}): run `encode` again")
        benchmark = datasets.open_benchmark(name, settings[name])
        if benchmark.fingerprint != fingerprint:
            raise ValueError(f"benchmark {name} has changed since `encode` read it; run it again")
        opened.append(Encoded.open(benchmark, folder, dense))
    return opened


def open_clip(settings, device):
    """The CLIP that pictures are encoded with, or None where `encode` kept their features. settings: params.Clip."""
    if settings.cache_images:
        return None
    from ..clip.frozen import FrozenCLIP  # takes seconds to import

    return FrozenCLIP.open(settings, device)


def threshold_of(benchmark, settings, default):
    """The background threshold of a benchmark: settings.thresholds', else the default; None without background.

    settings: params.Evaluate; default: params' segment.threshold.
    """
    return settings.thresholds.get(benchmark.name, default) if benchmark.background else None


def evaluate(segmenters, encoded, threshold):
    """mIoU of segmenters on a benchmark, that share all but decoder and unit.

    segmenters: {name: Segmenter}. encoded: Encoded. threshold: of the background, or None. Returns for each name
    {"miou", "pictures", "classes": [{"class", "iou"}, ...]}, in percent, None for a class that is nowhere.
    """
    count = 0
    ious = {name: datasets.MeanIoU(encoded.benchmark.classes) for name in segmenters}
    progress = tqdm(encoded.pictures(list(segmenters.values())), encoded.benchmark.name, len(encoded.benchmark), mininterval=2)
    for _, _, labels, scores in progress:
        for (name, segmenter), score in zip(segmenters.items(), scores, strict=True):
            ious[name].update(score.labels(segmenter.settings.scale, threshold), labels)
        count += 1
    found = {name: iou.compute() for name, iou in ious.items()}
    return {
        name: {"miou": datasets.mean(by_class), "pictures": count, "classes": [{"class": c, "iou": iou} for c, iou in by_class.items()]}
        for name, by_class in found.items()
    }


def examples(segmenters, encoded, threshold, wanted):
    """Pictures to look at: a list of [PIL image, truth, label map of each segmenter] for the picture indices in wanted.

    Those beyond the last picture are left out; the first stands in where none is left.
    """
    rows, wanted = [], [index for index in wanted if index < len(encoded.benchmark)] or [0]
    for index, (_, image, truth, scores) in zip(range(max(wanted) + 1), encoded.pictures(segmenters), strict=False):
        if index in wanted:
            maps = (score.labels(segmenters[0].settings.scale, threshold).cpu().numpy() for score in scores)
            rows.append([image, truth, *maps])
    return rows


def first_window(segmenter, encoded):
    """The first window of a benchmark's first picture: (S, S, 3) uint8, and its pixel embeddings (1, d, h, w)."""
    _, image, _ = next(iter(encoded.benchmark))
    windows, _ = cut_windows(image, segmenter.settings)
    device = next(segmenter.decoder.parameters()).device
    if encoded.windows is None:
        dense = segmenter.clip.encode_dense(windows[:1])
    else:
        dense = features.as_tensor(encoded.windows[:1], device)
    return windows[0], segmenter.embed(dense)
