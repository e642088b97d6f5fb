"""The paper's eight benchmarks in MMSegmentation's layout: where files lie below a root folder, and what labels mean.
classes/NAME.txt holds MMSegmentation's class names in its order (GroupViT's for COCO-Object), one per line."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

CLASSES = Path(__file__).parent / "classes"
IGNORED = 255
THINGS, THINGS_AND_STUFF = 80, 171  # number of COCO-Stuff's classes; things come first


def ignored(classes):
    """The id of ignored pixels in label maps of this many classes: 255, or 65535 where 255 is a class."""
    return IGNORED if classes <= IGNORED else 65535


@dataclass(frozen=True)
class Layout:
    """One benchmark's files. Paths are relative to the root; {split} is a part of the dataset, {key} an image of it.
    images, labels: of an image and its label map. listing: the file with a split's keys; None: all images of the split's
    folder. evaluated, calibration: the split for mIoU, and for choosing a threshold. zero_ignored: 0 is ignored and 1 is
    the first class (reduce_zero_label). things_only: COCO-Stuff's things count from 1; everything else is background, 0."""

    images: str
    labels: str
    listing: str | None = None
    evaluated: str = "val"
    calibration: str = "train"
    zero_ignored: bool = False
    things_only: bool = False

    def decoded(self, labels):
        """Class indices and 255 of a stored label map, with the same shape and type."""
        if self.things_only:
            stuff = (labels >= THINGS) & (labels < THINGS_AND_STUFF) | (labels == IGNORED)
            return np.where(stuff, 0, np.where(labels < THINGS, labels + 1, labels)).astype(labels.dtype)
        if self.zero_ignored:
            return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(labels.dtype)
        return labels


_VOC = Layout("JPEGImages/{key}.jpg", "SegmentationClass/{key}.png", "ImageSets/Segmentation/{split}.txt")
_CONTEXT = Layout("JPEGImages/{key}.jpg", "SegmentationClassContext/{key}.png", "ImageSets/SegmentationContext/{split}.txt")
_STUFF = Layout("images/{split}/{key}.jpg", "annotations/{split}/{key}_labelTrainIds.png", None, "val2017", "train2017")

LAYOUTS = {
    "voc": _VOC,
    "voc20": replace(_VOC, zero_ignored=True),
    "context": _CONTEXT,
    "context59": replace(_CONTEXT, zero_ignored=True),
    # Defined by GroupViT and adopted by TCL: COCO-Stuff's 80 things; stuff and unlabelled pixels (255) form the background,
    # and no pixel is ignored. COCO-Stuff's maps resolve overlapping instances; instances_*.json does not.
    "coco_object": replace(_STUFF, things_only=True),
    "coco_stuff": _STUFF,
    "cityscapes": Layout("leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelTrainIds.png"),
    "ade20k": Layout("images/{split}/{key}.jpg", "annotations/{split}/{key}.png", None, "validation", "training", zero_ignored=True),
}
