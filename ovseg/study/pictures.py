"""Users' own pictures: read them, draw their segmentation, and write the results."""

import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.files import write_whole
from ..data.images import rgb
from ..data.shards import MAX_PIXELS
from . import figures

DRAWN = 1600  # pixels, the maximum longer side of a drawn picture: larger ones are shrunk
INCHES = 10  # the longer side of a drawn picture
MAX_NAMES = 256  # classes that a label map of one byte a pixel can hold


def read_picture(path):
    """Read a picture file as an upright PIL RGB image; an animation gives its first frame.

    Raises ValueError or OSError, one line, if the file is not a picture, is broken, or has more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning and broken EXIF
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return rgb(image)
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS // 10**6} million pixels: make it smaller") from None
    except UnidentifiedImageError:
        raise ValueError("not a picture of a format that Pillow reads") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise ValueError(f"cannot be decoded: {error}") from None


def check_count(names):
    """Raises ValueError if a label map cannot hold this many names, including the background."""
    if names > MAX_NAMES:
        raise ValueError(f"{names} classes: at most {MAX_NAMES} fit a label map, the background counted")


def percentages(found):
    """How much of a picture each class covers: {name: percent}, in the order of label values. found: Segmentation."""
    counts = np.bincount(found.labels.flat, minlength=len(found.names))
    return {name: 100 * count / found.labels.size for name, count in zip(found.names, counts.tolist(), strict=True)}


def draw_overlay(image, found):
    """Draw a segmentation: class colours over the picture, names on large regions, a legend with areas.

    image: PIL RGB image. found: its Segmentation. The legend lists the classes found, largest first, at most figures.NAMED.
    """
    scale = min(1, DRAWN / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    labels = np.asarray(label_image(found).resize(size, Image.Resampling.NEAREST))
    colours = figures.palette(found.names)
    figure = figures.grid([[figures.overlay(image.resize(size), labels, colours)]], size=INCHES)
    figure.set_size_inches(*(max(1, INCHES * side / max(size)) for side in size))
    names = [name.replace("$", r"\$") for name in found.names]  # no formulas
    figures.name_regions(figure.axes[0], labels, names)
    for text in figure.axes[0].texts:
        text.set_fontsize(12)  # the picture is alone
    areas = list(percentages(found).values())
    shown = [index for index in np.argsort(areas)[::-1] if areas[index]][: figures.NAMED]
    figures.legend(figure, [f"{name} {area:.1f}%" for name, area in zip(names, areas, strict=True)], colours, shown)
    return figure


def label_image(found):
    """The label map as an indexed PIL image, mode P: values are indices into found.names, the palette holds their colours.

    Raises ValueError for too many names.
    """
    check_count(len(found.names))
    image = Image.fromarray(found.labels.astype(np.uint8))
    image.putpalette(figures.palette(found.names).tobytes())
    return image


def write_segmentation(job, image, found, made_with):
    """Write the files of a job (batch.Job), each atomically. made_with: a dict of further entries for the JSON."""
    label_map = label_image(found)
    write_whole(job.labels, lambda part: label_map.save(part, "PNG"))
    figure = draw_overlay(image, found)
    try:
        write_whole(job.overlay, lambda part: figure.savefig(part, format="png"))
    finally:
        plt.close(figure)
    areas = {name: round(percent, 3) for name, percent in percentages(found).items()}
    about = {"picture": str(job.picture), "width": image.width, "height": image.height, "percent": areas}
    about |= {"others": found.others, "threshold": found.threshold} | made_with
    write_whole(job.areas, lambda part: part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"))
