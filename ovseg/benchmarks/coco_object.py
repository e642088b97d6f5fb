"""COCO-Object's label maps from COCO-Stuff's: `python -m ovseg.benchmarks.coco_object FOLDER [--split val2017]`.

COCO-Object is COCO-Stuff with its 80 things kept and all else, stuff and unlabelled pixels (255) alike, one background: 0
is the background, 1..80 are the things, no pixel is ignored. So GroupViT defined it and TCL took it over; where instances
overlap, COCO-Stuff's maps have already decided, which instances_*.json would leave open. FOLDER holds
annotations/SPLIT/NAME.png, the maps of stuffthingmaps, or MMSegmentation's NAME_labelTrainIds.png made of them.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.shards import parallel

THINGS = 80
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # category ids less 1 that COCO names but never labelled
OURS, STUFF = "_instanceTrainIds.png", "_labelTrainIds.png"


def from_raw(labels):
    """Label maps of stuffthingmaps, (H, W) uint8 of category id - 1, things below 91 -> COCO-Object's, of the same shape.

    Raises ValueError if a pixel holds an id that no picture has.
    """
    if np.isin(labels, UNUSED).any():
        raise ValueError(f"holds one of {UNUSED}, which no map of stuffthingmaps does")
    table = np.zeros(256, np.uint8)
    table[[index for index in range(91) if index not in UNUSED]] = np.arange(1, THINGS + 1)
    return table[labels]


def from_train_ids(labels):
    """MMSegmentation's label maps of COCO-Stuff, (H, W) uint8, things 0..79 -> COCO-Object's, of the same shape."""
    return np.where(labels < THINGS, labels + np.uint8(1), np.uint8(0))


def sources(folder, split):
    """{name: path of COCO-Stuff's label map} of a split, sorted; the original maps before those made of them.

    Raises FileNotFoundError if there is none.
    """
    at = Path(folder) / "annotations" / split
    maps = sorted(at.glob("*.png"))
    found = {path.name.removesuffix(STUFF): path for path in maps if path.name.endswith(STUFF)}
    found |= {path.stem: path for path in maps if "TrainIds" not in path.name}
    if not found:
        raise FileNotFoundError(
            f"no label maps of COCO-Stuff in {at}: expected NAME.png of stuffthingmaps_trainval2017 "
            f"(https://github.com/nightrome/cocostuff#downloads) or NAME{STUFF}"
        )
    return dict(sorted(found.items()))


def convert(source, target):
    """Write COCO-Object's label map for one of COCO-Stuff's. target appears when it is whole. Raises ValueError."""
    try:
        labels = np.asarray(Image.open(source))
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f"is {labels.dtype} of shape {labels.shape}, not one byte a pixel")
        found = from_train_ids(labels) if source.name.endswith(STUFF) else from_raw(labels)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's for a broken PNG
        raise ValueError(f"{source}: {error}") from None
    part = target.with_suffix(".part")
    Image.fromarray(found).save(part, "PNG")
    os.replace(part, target)


def _convert_one(item):
    convert(*item)


def write(folder, split):
    """Write those label maps of a split that are not there yet. Returns how many were written and how many were there."""
    pairs = [(path, path.with_name(f"{name}{OURS}")) for name, path in sources(folder, split).items()]
    wanted = [pair for pair in pairs if not pair[1].exists()]
    if wanted:
        for _ in parallel(_convert_one, wanted, "COCO-Object"):
            pass
    return len(wanted), len(pairs) - len(wanted)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ovseg.benchmarks.coco_object", description="COCO-Object's label maps from COCO-Stuff's.")
    parser.add_argument("folder", help="holds images/SPLIT and annotations/SPLIT")
    parser.add_argument("--split", default="val2017", help="val2017 is evaluated; train2017 is for choosing a threshold")
    asked = parser.parse_args(arguments)
    try:
        written, there = write(asked.folder, asked.split)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{asked.folder}/annotations/{asked.split}: wrote {written} *{OURS}, {there} were there")


if __name__ == "__main__":
    main()
