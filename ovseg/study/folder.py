"""Evaluate a segmenter on a folder of pictures with label maps, outside a study."""

from ..benchmarks import evaluation
from ..benchmarks.miou import mean


def evaluate_folder(segmenter, benchmark, threshold=None):
    """Evaluate a segmenter on a benchmark with its own unit, in the same way as a study's runs.

    threshold: softmax score below which a pixel is background; None: the one in the settings; ignored without background. Returns a dict:
    benchmark, pictures, unit, threshold (None without background), miou and iou {class: percent or None}. Raises ValueError on a broken
    picture or label map.
    """
    settings = segmenter.settings
    threshold = (settings.threshold if threshold is None else threshold) if benchmark.background else None
    classes = segmenter.clip.embed_classes(benchmark.named, settings.templates)
    found = evaluation.evaluate({"": segmenter}, [evaluation.Encoded(benchmark, classes, None, threshold)])
    iou = found[benchmark.name][""]
    about = {"benchmark": str(benchmark.folder), "pictures": len(benchmark), "unit": settings.unit, "threshold": threshold}
    return about | {"miou": mean(iou), "iou": iou}
