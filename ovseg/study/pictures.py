"""Draw the segmentation of a picture, and write it as three files."""

import json

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ..data.files import write_whole
from . import figures

DRAWN = 1600  # pixels, the maximum longer side of a drawn picture: larger ones are shrunk
INCHES = 10  # the longer side of a drawn picture


def plan_outputs(pictures, out, force=False):
    """Plan the files to write into the folder out: {picture: [overlay, label map, areas]}, all of them Path.

    Raises ValueError if two pictures have the same name, or if a file is one of the pictures or (without force) exists.
    """
    outputs = {picture: [out / f"{picture.stem}.{ending}" for ending in ("overlay.png", "labels.png", "json")] for picture in pictures}
    by_name, inputs = {}, {picture.resolve() for picture in pictures}
    for picture, files in outputs.items():
        if by_name.setdefault(picture.stem, picture) is not picture:
            raise ValueError(f"{by_name[picture.stem]} and {picture} would overwrite each other: use a different --out for one of them")
        if same := [file for file in files if file.resolve() in inputs]:
            raise ValueError(f"{same[0]} is one of the pictures, and would be overwritten: use a different --out")
        if not force and (existing := [file for file in files if file.exists()]):
            raise ValueError(f"{existing[0]} exists already; --force replaces it")
    return outputs


def percentages(segmentation):
    """How much of a picture each class covers: {name: percent}, in the order of label values."""
    counts = np.bincount(segmentation.labels.flat, minlength=len(segmentation.names)).tolist()
    return {name: 100 * count / segmentation.labels.size for name, count in zip(segmentation.names, counts, strict=True)}


def draw_overlay(image, segmentation):
    """Draw a segmentation of a PIL RGB image: class colours, names on large regions, a legend of the largest classes. Returns a figure."""
    scale = min(1, DRAWN / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    labels = np.asarray(Image.fromarray(segmentation.labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    colours = figures.palette(segmentation.names)
    figure = figures.grid([[figures.overlay(image.resize(size), labels, colours)]])
    figure.set_size_inches(*(max(1, INCHES * side / max(size)) for side in size))
    names = [name.replace("$", r"\$") for name in segmentation.names]  # no formulas
    figures.name_regions(figure.axes[0], labels, names, 12)
    areas = [*percentages(segmentation).values()]
    shown = [index for index in np.argsort(areas)[::-1] if areas[index]][: figures.NAMED]
    figures.legend(figure, [f"{name} {area:.1f}%" for name, area in zip(names, areas, strict=True)], colours, shown)
    return figure


def write_segmentation(files, image, segmentation, made_with):
    """Write the files that `plan_outputs` plans for a picture. made_with: a dict of further entries for the JSON.

    The label map is a PNG of mode P: values are indices into segmentation.names (at most 256), the palette holds their colours.
    """
    overlay, labels, areas = files
    label_map = Image.fromarray(segmentation.labels.astype(np.uint8))
    label_map.putpalette(figures.palette(segmentation.names).tobytes())
    write_whole(labels, lambda part: label_map.save(part, "PNG"))
    figure = draw_overlay(image, segmentation)
    plt.close(figure)  # which stays usable
    write_whole(overlay, lambda part: figure.savefig(part, format="png"))
    about = made_with | {"width": image.width, "height": image.height, "others": segmentation.others, "threshold": segmentation.threshold}
    about |= {"percent": {name: round(value, 3) for name, value in percentages(segmentation).items()}}
    write_whole(areas, lambda part: part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"))
