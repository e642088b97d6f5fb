"""The paper's eight benchmarks in MMSegmentation's layout: where files lie below a root folder, and what labels mean.

classes/NAME.txt holds MMSegmentation's class names in its order (GroupViT's for COCO-Object), one per line.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

CLASSES = Path(__file__).parent / "classes"
IGNORED = 255
THINGS, THINGS_AND_STUFF = 80, 171  # number of COCO-Stuff's classes; things come first


@dataclass(frozen=True)
class Layout:
    """One benchmark's files. Paths are relative to the root; {split} is a part of the dataset, {key} an image of it.

    images, labels: of an image and its label map. classes: the list in classes/. source: where to get the data. listing: the file with a
    split's keys; None: all images of the split's folder. evaluated, calibration: the split for mIoU, and for choosing a threshold.
    zero_ignored: 0 is ignored and 1 is the first class (MMSegmentation's reduce_zero_label). things_only: COCO-Stuff's things count from 1;
    everything else is background, 0.
    """

    images: str
    labels: str
    classes: str
    source: str
    listing: str | None = None
    evaluated: str = "val"
    calibration: str = "train"
    zero_ignored: bool = False
    things_only: bool = False

    def parts(self, split):
        """Paths that a split needs below the root, e.g. ("images/val2017/*.jpg", ...): images, label maps, and the listing if any."""
        return tuple(part.format(split=split, key="*") for part in (self.images, self.labels, self.listing) if part)

    def keys(self, folder, split):
        """Keys of a split's images, in the order of the listing, or sorted if there is none."""
        if self.listing:
            return (folder / self.listing.format(split=split)).read_text().split()
        start, suffix = self.images.format(split=split, key="*").split("*")
        images = sorted((folder / start).rglob(f"*{suffix}"))  # Cityscapes has a folder for each city
        return [path.relative_to(folder / start).as_posix().removesuffix(suffix) for path in images]

    def decoded(self, labels):
        """Convert a stored label map (H, W) to class indices and 255, with the same shape and type."""
        if self.things_only:
            stuff = (labels >= THINGS) & (labels < THINGS_AND_STUFF) | (labels == IGNORED)
            return np.where(stuff, 0, np.where(labels < THINGS, labels + 1, labels)).astype(labels.dtype)
        if self.zero_ignored:
            return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(labels.dtype)
        return labels


_CONVERTERS = "MMSegmentation's tools/dataset_converters"
_VOC = Layout(
    images="JPEGImages/{key}.jpg",
    labels="SegmentationClass/{key}.png",
    listing="ImageSets/Segmentation/{split}.txt",
    classes="voc",
    source="download VOCtrainval_11-May-2012 from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)
_CONTEXT = Layout(
    images="JPEGImages/{key}.jpg",
    labels="SegmentationClassContext/{key}.png",
    listing="ImageSets/SegmentationContext/{split}.txt",
    classes="context",
    source="download VOCtrainval_03-May-2010 from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and trainval_merged.json "
    f"from https://codalabuser.blob.core.windows.net/public/trainval_merged.json, then run {_CONVERTERS}/pascal_context.py",
)
_COCO_STUFF = Layout(
    images="images/{split}/{key}.jpg",
    labels="annotations/{split}/{key}_labelTrainIds.png",
    classes="coco_stuff",
    evaluated="val2017",
    calibration="train2017",
    source="download val2017, train2017 and stuffthingmaps_trainval2017 from https://github.com/nightrome/cocostuff#downloads, "
    f"then run {_CONVERTERS}/coco_stuff164k.py",
)

LAYOUTS = {
    "voc": _VOC,
    "voc20": replace(_VOC, zero_ignored=True),
    "context": _CONTEXT,
    "context59": replace(_CONTEXT, zero_ignored=True),
    # Defined by GroupViT and adopted by TCL: COCO-Stuff's 80 things; stuff and unlabelled pixels (255) form the background,
    # and no pixel is ignored. COCO-Stuff's maps resolve overlapping instances; instances_*.json does not.
    "coco_object": replace(_COCO_STUFF, classes="coco_object", things_only=True),
    "coco_stuff": _COCO_STUFF,
    "cityscapes": Layout(
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelTrainIds.png",
        classes="cityscapes",
        source="download leftImg8bit_trainvaltest and gtFine_trainvaltest from https://www.cityscapes-dataset.com/downloads/, "
        f"then run {_CONVERTERS}/cityscapes.py",
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
