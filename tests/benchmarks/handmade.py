"""Benchmarks of 8x8 pictures whose scores can be told by hand, and what writes their files."""

import io

import numpy as np
import torch
from PIL import Image
from tiny import P

from ovseg.benchmarks import evaluation
from ovseg.benchmarks.datasets import FolderBenchmark
from ovseg.segmentation.segmenter import Segmenter
from ovseg.training.decoder import Decoder

SETTINGS = P.segment.model_copy(update={"unit": "pixel", "short_side": 8, "window": 8, "stride": 8, "scale": 1.0, "precision": "float32"})
CLASSES = ("background", "a", "b")
# Features (2, 2, 2) of a picture's 2x2 patches, the left half like the first class: the right one like the second, like neither
FIRST_SECOND = [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]
FIRST_NEITHER = [[[1, 0], [1, 0]], [[0, 0], [0, 0]]]


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def columns(*labels):
    """An 8x8 label map of those columns."""
    return np.tile(np.array(labels, np.uint8), (8, 1))


def write(path, maps, classes=CLASSES, image=None):
    """A benchmark's folder of 8x8 pictures with those label maps. image: the bytes of each picture. Returns its path."""
    for part in ("images", "labels"):
        (path / part).mkdir(parents=True)
    for index, labels in enumerate(maps):
        (path / "images" / f"{index}.png").write_bytes(image or png(np.full((8, 8, 3), index, np.uint8)))
        (path / "labels" / f"{index}.png").write_bytes(png(labels))
    (path / "classes.txt").write_text("\n".join(classes) + "\n")
    return path


def encoded(path, maps, features, classes=CLASSES, threshold=None):
    """Such a benchmark with features (n, 2, 2, 2), whose classes with a text are embedded as (1, 0) and (0, 1)."""
    benchmark = FolderBenchmark("mine", write(path, maps, classes))
    return evaluation.Encoded(benchmark, torch.eye(2), np.array(features, np.float16), threshold)


def segmenter(**changes):
    """A segmenter that scores those features as they are."""
    return Segmenter(None, Decoder(2), SETTINGS.model_copy(update=changes))
