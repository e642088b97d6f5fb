"""Evaluating a segmenter on a benchmark, from cached features or from the pictures themselves."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from . import benchmarks, features, scenes
from .segmenter import cut, layout, to_labels


@dataclass
class Encoded:
    """A benchmark with what CLIP says of it: class embeddings (C, d), and dense features of all windows, or None."""

    benchmark: benchmarks.BenchmarkBase
    classes: torch.Tensor
    windows: np.ndarray | None

    @classmethod
    def open(cls, benchmark, folder, dense):
        """What features.encode_benchmark cached in folder. dense: see clip.py."""
        classes = torch.from_numpy(np.load(f"{folder}/{benchmark.name}/classes.npy"))
        return cls(benchmark, classes, features.read(f"{folder}/{benchmark.name}/{dense}.npy"))

    def pictures(self, segmenter):
        """Yields (key, PIL image, label map, class scores (C, H, W)) for each picture, H and W the label map's."""
        row = 0
        device = next(segmenter.decoder.parameters()).device
        classes = self.classes.to(device)
        for key, image, labels in self.benchmark:
            if self.windows is None:
                windows, where = cut(image, segmenter.settings)
                batch = segmenter.settings.batch
                parts = [segmenter.clip.encode_dense(windows[i : i + batch], segmenter.dense) for i in range(0, len(windows), batch)]
                dense = torch.cat(parts)
            else:
                where = layout(image.height, image.width, segmenter.settings)
                dense = features.as_tensor(self.windows[row : row + len(where.positions)], device)
                row += len(where.positions)
            yield key, image, labels, segmenter.score_features(dense, where, classes, labels.shape)
        if self.windows is not None and row != len(self.windows):
            raise ValueError(f"benchmark {self.benchmark.name} has changed since `encode` read it; run it again")


def threshold_of(benchmark, settings, default):
    """The background threshold of a benchmark: settings.thresholds', else the default; None without background.

    settings: params.Evaluate; default: params' segment.threshold.
    """
    return settings.thresholds.get(benchmark.name, default) if benchmark.background else None


def evaluate(segmenter, encoded, threshold, limit=None):
    """mIoU of a segmenter on a benchmark.

    encoded: Encoded. threshold: of the background, or None. limit: only the first that many pictures. Returns
    {"miou", "iou": {class: percent or None}, "pictures"}, and for the rendered world "things" and "stuff",
    the means over those classes. All in percent.
    """
    count = 0
    iou = benchmarks.MeanIoU(encoded.benchmark.classes)
    progress = tqdm(encoded.pictures(segmenter), encoded.benchmark.name, len(encoded.benchmark), mininterval=2)
    for _, _, labels, scores in progress:
        iou.update(to_labels(scores, segmenter.settings.scale, threshold), labels)
        count += 1
        if count == limit:
            break
    by_class = iou.compute()
    result = {"miou": benchmarks.mean(by_class), "iou": by_class, "pictures": count}
    if set(scenes.CLASSES) <= set(by_class):
        result["things"] = benchmarks.mean(by_class, scenes.THINGS)
        result["stuff"] = benchmarks.mean(by_class, scenes.STUFF)
    return result


def examples(segmenters, encoded, threshold, wanted):
    """Pictures to look at: a list of [PIL image, truth, label map of each segmenter] for the picture indices in wanted."""
    rows = []
    streams = zip(*(encoded.pictures(segmenter) for segmenter in segmenters), strict=True)
    for _, pictures in (found for found in zip(range(max(wanted) + 1), streams, strict=False) if found[0] in wanted):
        _, image, truth, _ = pictures[0]
        maps = (to_labels(scores, segmenters[0].settings.scale, threshold).cpu().numpy() for *_, scores in pictures)
        rows.append([image, truth, *maps])
    return rows


def first_window(segmenter, encoded):
    """The first window of a benchmark's first picture: (S, S, 3) uint8, and its pixel embeddings (1, d, h, w)."""
    _, image, _ = next(iter(encoded.benchmark))
    windows, _ = cut(image, segmenter.settings)
    device = next(segmenter.decoder.parameters()).device
    if encoded.windows is None:
        dense = segmenter.clip.encode_dense(windows[:1], segmenter.dense)
    else:
        dense = features.as_tensor(encoded.windows[:1], device)
    with torch.no_grad():
        return windows[0], segmenter.decoder(dense)
