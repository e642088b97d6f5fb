"""Benchmark pictures with label maps and captions, shown by figures.py."""

import numpy as np

from ..benchmarks import evaluation
from ..benchmarks.miou import MeanIoU, mean
from ..data.captions import nouns
from ..segmentation.windows import to_labels


def picture_miou(labels, truth, classes):
    """mIoU in percent of one label map, over the classes present in it or in its truth; None if no pixel can be judged. Both (H, W)."""
    iou = MeanIoU(classes)
    iou.update(labels, truth)
    return mean(iou.compute())


def captions(rows, numbers, classes):
    """The captions below the pictures: the picture's number, and the mIoU of each label map.

    rows: lists of (picture, truth, label map, ...). numbers: picture numbers.
    """
    texts = []
    for (_, truth, *maps), number in zip(rows, numbers, strict=True):
        values = [picture_miou(labels, truth, classes) for labels in maps]
        texts.append([f"picture {number}", "", *("" if value is None else f"mIoU {value:.1f}%" for value in values)])
    return texts


def of_benchmark(segmenters, encoded, wanted):
    """(rows, captions) for figures.segmentations. Arguments as in evaluation.examples."""
    numbers = [index for index in wanted if index < len(encoded.benchmark)] or [0]
    rows = evaluation.examples(segmenters, encoded, numbers)
    return rows, captions(rows, numbers, encoded.benchmark.classes)


def stages(segmenter, encoded, wanted):
    """Intermediate stages of label maps, for figures.segmentations: (titles, rows, captions).

    raw: each pixel embedding of one window by itself, in blocks. windowed: scores averaged where windows overlap and interpolated to the
    picture. refined: with the segmenter's own unit, if that is not the pixel. Arguments as in `of_benchmark`, for one segmenter.
    """
    numbers, unit = sorted({index for index in wanted if index < len(encoded.benchmark)} or {0}), segmenter.settings.unit
    units = list(dict.fromkeys(["pixel", unit]))
    titles = ["picture", "truth", "raw: a pixel embedding each", "windowed: averaged, interpolated"]
    titles += [f"refined: by {unit}s"] * (unit != "pixel")
    rows, scored = [], evaluation.score_pictures([encoded], [segmenter.with_unit(unit) for unit in units], numbers)
    for image, (truth,), scores in scored:
        maps = [raw(scores[0][0], encoded, segmenter), *(encoded.labels(of_unit[0], segmenter) for of_unit in scores)]
        rows.append([image, truth, *(np.asarray(labels.cpu()) for labels in maps)])
    return titles, rows, captions(rows, numbers, encoded.benchmark.classes)


def raw(scores, encoded, segmenter):
    """The label map (H, W) that gives each pixel the label of the embedding it lies in; where windows overlap, the first window's.

    scores: segmentation.windows.Scores. encoded: evaluation.Encoded.
    """
    row, column = ((weights * 1000).round().max(1).indices for weights in (scores.down, scores.across))  # ties are ties after rounding
    s = segmenter.settings
    threshold = s.threshold if encoded.threshold is None else encoded.threshold
    return to_labels(scores.mosaic[:, row][:, :, column], segmenter.scale, threshold if encoded.benchmark.background else None)


def most_nouns(texts, count, columns):
    """Choose captions to show with one panel per noun, all with the same number of panels: (indices, panels per caption).

    texts: captions. Chooses the `count` captions with the most nouns, counting at most `columns` nouns; ties go to the first, and the
    order is kept. All get as many panels as the one with the fewest nouns, but at least one: a caption without nouns represents itself.
    """
    counts = [min(len(nouns(text)), columns) for text in texts]
    chosen = sorted(sorted(range(len(texts)), key=lambda index: -counts[index])[:count])
    return chosen, max(1, min(counts[index] for index in chosen))
