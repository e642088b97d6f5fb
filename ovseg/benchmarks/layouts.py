"""The paper's eight benchmarks as MMSegmentation lays them out: where files lie below a root folder, what labels mean.

classes/NAME.txt holds MMSegmentation's class names in its order (COCO-Object: GroupViT's), a name per line.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = Path(__file__).parent / "classes"
IGNORED = 255


@dataclass(frozen=True)
class Layout:
    """One benchmark's layout. In paths below the root, {split} is a part of the data set and {key} a picture of it.

    images, labels: a picture's file and its label map's. classes: the stem of its list of names. source: where to get it,
    and how to convert it. listing: the file that names the keys of a split; None takes the pictures that are there.
    evaluated, calibration: the split that is evaluated, and the one that a threshold may be chosen on. zero_ignored: pixels
    of label 0 are ignored, the others stand for one less (MMSegmentation's reduce_zero_label); else label 0 is the first class.
    """

    images: str
    labels: str
    classes: str
    source: str
    listing: str | None = None
    evaluated: str = "val"
    calibration: str = "train"
    zero_ignored: bool = False

    def parts(self, split):
        """What is expected below the root, e.g. ("images/val2017/*.jpg", ...)."""
        return tuple(part.format(split=split, key="*") for part in (self.images, self.labels, self.listing) if part)

    def keys(self, folder, split):
        """Keys of a split's pictures: in the order of the listing, or sorted. Raises FileNotFoundError without the listing."""
        if self.listing:
            return (folder / self.listing.format(split=split)).read_text().split()
        start, suffix = self.images.format(split=split, key="*").split("*")
        found = sorted((folder / start).rglob(f"*{suffix}"))  # Cityscapes has a folder for each city
        return [path.relative_to(folder / start).as_posix().removesuffix(suffix) for path in found]

    def decoded(self, labels):
        """Label values as they lie in files -> indices into the classes and 255, (H, W) both."""
        if not self.zero_ignored:
            return labels
        return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(labels.dtype)


_SCRIPTS = "MMSegmentation's tools/dataset_converters"
_VOC = {
    "images": "JPEGImages/{key}.jpg",
    "labels": "SegmentationClass/{key}.png",
    "listing": "ImageSets/Segmentation/{split}.txt",
    "classes": "voc",
    "source": "download VOCtrainval_11-May-2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
}
_CONTEXT = {
    "images": "JPEGImages/{key}.jpg",
    "labels": "SegmentationClassContext/{key}.png",
    "listing": "ImageSets/SegmentationContext/{split}.txt",
    "classes": "context",
    "source": "download VOCtrainval_03-May-2010 from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and trainval_merged.json "
    f"from https://codalabuser.blob.core.windows.net/public/trainval_merged.json, then run {_SCRIPTS}/pascal_context.py",
}
_COCO = {"images": "images/{split}/{key}.jpg", "evaluated": "val2017", "calibration": "train2017"}
_COCO_SOURCE = (
    "download val2017, train2017 and stuffthingmaps_trainval2017 from https://github.com/nightrome/cocostuff#downloads, then run "
)

LAYOUTS = {
    "voc": Layout(**_VOC),
    "voc20": Layout(**_VOC, zero_ignored=True),
    "context": Layout(**_CONTEXT),
    "context59": Layout(**_CONTEXT, zero_ignored=True),
    "coco_object": Layout(
        **_COCO,
        labels="annotations/{split}/{key}_instanceTrainIds.png",
        classes="coco_object",
        source=f"{_COCO_SOURCE}python -m ovseg.benchmarks.coco_object FOLDER --split SPLIT",
    ),
    "coco_stuff": Layout(
        **_COCO,
        labels="annotations/{split}/{key}_labelTrainIds.png",
        classes="coco_stuff",
        source=f"{_COCO_SOURCE}{_SCRIPTS}/coco_stuff164k.py",
    ),
    "cityscapes": Layout(
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelTrainIds.png",
        classes="cityscapes",
        source="download leftImg8bit_trainvaltest and gtFine_trainvaltest from https://www.cityscapes-dataset.com/downloads/, "
        f"then run {_SCRIPTS}/cityscapes.py",
    ),
    "ade20k": Layout(
        images="images/{split}/{key}.jpg",
        labels="annotations/{split}/{key}.png",
        classes="ade20k",
        evaluated="validation",
        calibration="training",
        zero_ignored=True,
        source="download http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    ),
}
