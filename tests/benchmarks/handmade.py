"""Settings and benchmarks of 8x8 pictures whose scores can be told by hand, and where files of the paper's benchmarks lie."""

import numpy as np
from tiny import P, changed

SETTINGS = P.segment.model_copy(update={"unit": "pixel", "short_side": 8, "window": 8, "stride": 8, "scale": 1.0, "precision": "float32"})
CLASSES = ("background", "a", "b")
# the paper's benchmarks: listing, image and label map of a split {0} and a key {1}
PLACES = {
    "voc": ("ImageSets/Segmentation/{0}.txt", "JPEGImages/{1}.jpg", "SegmentationClass/{1}.png"),
    "context": ("ImageSets/SegmentationContext/{0}.txt", "JPEGImages/{1}.jpg", "SegmentationClassContext/{1}.png"),
    "coco_stuff": (None, "images/{0}/{1}.jpg", "annotations/{0}/{1}_labelTrainIds.png"),
    "cityscapes": (None, "leftImg8bit/{0}/{1}_leftImg8bit.png", "gtFine/{0}/{1}_gtFine_labelTrainIds.png"),
    "ade20k": (None, "images/{0}/{1}.jpg", "annotations/{0}/{1}.png"),
}
PLACES |= {"voc20": PLACES["voc"], "context59": PLACES["context"], "coco_object": PLACES["coco_stuff"]}
SPLITS = {"coco_stuff": ("val2017", "train2017"), "coco_object": ("val2017", "train2017"), "ade20k": ("validation", "training")}
COUNTS = {"voc": 21, "voc20": 20, "context": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
WITH_BACKGROUND = ("voc", "context", "coco_object")
REDUCED = ("voc20", "context59", "ade20k")  # reduce_zero_label


def files(name, keys, split=0):
    """(image, label map) of keys of a benchmark, below its folder. split: 0 evaluated, 1 for calibration."""
    _, image, labels = PLACES[name]
    of_split = SPLITS.get(name, ("val", "train"))[split]
    return [(image.format(of_split, key), labels.format(of_split, key)) for key in keys]


def columns(*labels):
    """An 8x8 label map of those columns."""
    return np.tile(np.array(labels, np.uint8), (8, 1))


def study(benchmarks, mode="maskclip", thresholds=None, cached=True):
    """Params of some benchmarks for the tiny CLIP."""
    clip = P.clip.model_copy(update={"dense": mode, "cache_images": cached})
    evaluate = P.evaluate.model_copy(update={"thresholds": thresholds or {}})
    return P.model_copy(update={"benchmarks": benchmarks, "clip": clip, "segment": changed(), "evaluate": evaluate})
