"""Benchmarks of 8x8 pictures whose scores can be told by hand, what writes their files, and files of the paper's benchmarks, path by path."""

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
# name: listing, then (key, image, label map) of two evaluated pictures in the order expected, then of one for calibration
FILES = {
    "voc": (
        "ImageSets/Segmentation/{}.txt",
        ("2007_000061", "JPEGImages/2007_000061.jpg", "SegmentationClass/2007_000061.png"),
        ("2007_000033", "JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png"),
        ("2007_000032", "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"),
    ),
    "context": (
        "ImageSets/SegmentationContext/{}.txt",
        ("2008_000008", "JPEGImages/2008_000008.jpg", "SegmentationClassContext/2008_000008.png"),
        ("2008_000003", "JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png"),
        ("2008_000002", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png"),
    ),
    "coco_stuff": (
        None,
        ("000000000139", "images/val2017/000000000139.jpg", "annotations/val2017/000000000139_labelTrainIds.png"),
        ("000000000285", "images/val2017/000000000285.jpg", "annotations/val2017/000000000285_labelTrainIds.png"),
        ("000000000009", "images/train2017/000000000009.jpg", "annotations/train2017/000000000009_labelTrainIds.png"),
    ),
    "cityscapes": (
        None,
        ("lindau/lindau_1", "leftImg8bit/val/lindau/lindau_1_leftImg8bit.png", "gtFine/val/lindau/lindau_1_gtFine_labelTrainIds.png"),
        ("munster/munster_0", "leftImg8bit/val/munster/munster_0_leftImg8bit.png", "gtFine/val/munster/munster_0_gtFine_labelTrainIds.png"),
        ("aachen/aachen_0", "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png", "gtFine/train/aachen/aachen_0_gtFine_labelTrainIds.png"),
    ),
    "ade20k": (
        None,
        ("ADE_val_00000001", "images/validation/ADE_val_00000001.jpg", "annotations/validation/ADE_val_00000001.png"),
        ("ADE_val_00000002", "images/validation/ADE_val_00000002.jpg", "annotations/validation/ADE_val_00000002.png"),
        ("ADE_train_00000001", "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"),
    ),
}
FILES |= {"voc20": FILES["voc"], "context59": FILES["context"], "coco_object": FILES["coco_stuff"]}
COUNTS = {"voc": 21, "voc20": 20, "context": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
WITH_BACKGROUND = ("voc", "context", "coco_object")
REDUCED = ("voc20", "context59", "ade20k")  # reduce_zero_label


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def save(path, content):
    """Write text, or an array as image, to a file in a folder that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content) if isinstance(content, str) else Image.fromarray(np.array(content, np.uint8)).save(path)


def columns(*labels):
    """An 8x8 label map of those columns."""
    return np.tile(np.array(labels, np.uint8), (8, 1))


def write(path, maps, classes=CLASSES, image=None):
    """A benchmark's folder of 8x8 pictures with those label maps. image: the bytes of each picture. Returns its path."""
    for index, labels in enumerate(maps):
        save(path / "images" / f"{index}.png", np.full((8, 8, 3), index))
        save(path / "labels" / f"{index}.png", labels)
        if image:
            (path / "images" / f"{index}.png").write_bytes(image)
    save(path / "classes.txt", "\n".join(classes) + "\n")
    return path


def encoded(path, maps, features, classes=CLASSES, threshold=None):
    """Such a benchmark with features (n, 2, 2, 2), whose classes with a text are embedded as (1, 0) and (0, 1)."""
    benchmark = FolderBenchmark("mine", write(path, maps, classes))
    return evaluation.Encoded(benchmark, torch.eye(2), np.array(features, np.float16), threshold)


def segmenter(**changes):
    """A segmenter that scores those features as they are."""
    return Segmenter(None, Decoder(2), SETTINGS.model_copy(update=changes))
