"""The panels' pictures: arrays in, PNG out. Drawn with Pillow: Matplotlib takes ten times as long, and there are twenty panels.

Each has the picture's aspect ratio, with SIZE as its longer side. Maps of pixel embeddings are drawn as blocks, one per embedding.
"""

import functools
import io

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..study import figures
from .view import NOT_JUDGED, WRONG

SIZE = 320  # pixels, the longer side
HUES = 61  # number of distinct unit colours; they repeat
ERROR, UNJUDGED = (213, 94, 0), (70, 70, 70)  # vermilion, distinguishable from grey with any colour blindness


def background(image):
    """A PIL picture resized to a panel: (H, W, 3) uint8."""
    scale = SIZE / max(image.size)
    return np.asarray(image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS))


def heat(values, shape, name="magma"):
    """A map (h, w) in a matplotlib colour map, scaled from its lowest to its highest value: (H, W, 3) uint8. shape: (H, W)."""
    low, high = values.min(), values.max()
    colours = matplotlib.colormaps[name]((values - low) / max(high - low, 1e-9))[..., :3]
    return _blocks((colours * 255).astype(np.uint8), shape)


def units(picture, ids):
    """Units as coloured regions with white borders over a picture in grey: (H, W, 3) uint8. ids (h, w)."""
    colours = figures.palette([f"{number}" for number in range(HUES)])
    painted = figures.overlay(picture, _blocks(np.asarray(ids) % HUES, picture.shape[:2]), colours)
    return figures.unit_borders(painted, ids)


def errors(picture, found):
    """Wrong pixels of `view.errors` in colour ERROR and pixels not judged in UNJUDGED, over a picture in grey: (H, W, 3) uint8."""
    found = _blocks(found, picture.shape[:2])[..., None]
    grey = picture.mean(-1, keepdims=True) * np.ones(3) * 0.6 + 70
    return np.where(found == WRONG, ERROR, np.where(found == NOT_JUDGED, UNJUDGED, grey)).astype(np.uint8)


def label_map(picture, labels, colours):
    """Like figures.overlay, for a label map (h, w) of any size: (H, W, 3) uint8."""
    return figures.overlay(picture, _blocks(labels, picture.shape[:2]), colours)


def png(array, dots=(), star=None, ring=None, labels=None, classes=()):
    """An array (H, W, 3) uint8 as PNG. dots, star, ring: positions (down, across) as shares of height and width. dots: several;
    star: a selected pixel; ring: the clicked pixel. labels (h, w) and classes: names to write into large regions.
    """
    image = Image.fromarray(np.ascontiguousarray(array))
    draw = ImageDraw.Draw(image)
    for x, y in (_at(place, image.size) for place in dots):
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), "white", "black")
    if labels is not None:
        scale = image.width / labels.shape[1], image.height / labels.shape[0]
        for index, x, y in figures.large_regions(labels, classes):
            where = ((x + 0.5) * scale[0], (y + 0.5) * scale[1])
            draw.text(where, classes[index], "white", _font(), "mm", stroke_width=2, stroke_fill="black")
    if star is not None:
        x, y = _at(star, image.size)
        for width, colour in ((5, "black"), (2, "white")):
            draw.line((x - 9, y, x + 9, y), colour, width)
            draw.line((x, y - 9, x, y + 9), colour, width)
    if ring is not None:
        x, y = _at(ring, image.size)
        for radius, colour, width in ((8, "black", 4), (7, "white", 2)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _at(place, size):
    """(down, across) as shares -> (x, y) in a picture of (width, height)."""
    return place[1] * size[0], place[0] * size[1]


def _blocks(array, shape):
    """(h, w, ...) -> (H, W, ...), each entry a block."""
    rows, columns = (np.arange(length) * side // length for length, side in zip(shape, array.shape, strict=False))
    return np.asarray(array)[rows][:, columns]


@functools.cache
def _font():
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
