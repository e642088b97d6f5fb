"""The panels of a run: (title, PNG, note in HTML) for each step of a View. Drawn with Pillow, ten times as fast as Matplotlib.

Pictures have SIZE as their longer side. Maps of pixel embeddings are drawn as blocks, one per embedding. The last results of two runs are
kept, so that a control draws only what depends on it. click: (down, across) of the ring, as shares of a picture's height and width.
"""

import functools
import io
from html import escape

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tabulate import tabulate

from ..methods.mgca import top_count
from ..segmentation.windows import BACKGROUND
from ..study import figures
from .view import NOT_JUDGED, WRONG, errors

COUNT, SIZE = 10, 320  # of panels; pixels
UNIT_COLOURS = figures.palette([f"unit {number}" for number in range(61)])  # they repeat
JUDGED = np.array([(210, 210, 210), (213, 94, 0), (40, 40, 40)], np.uint8)  # RIGHT, WRONG, NOT_JUDGED: distinct in any colour vision
TEXT, CROSS = (ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size) for size in (13, 32))


@functools.lru_cache(maxsize=2)
def pictures(run, view, picture, click, names):
    """The picture and its ground truth. run: its name. picture: sources.Picture. names: the classes."""
    small, where, (height, width, _) = background(picture), view.where, view.pixels.shape
    windows = f"{len(where.positions)} windows of {view.segmenter.settings.window} px"
    note = f"“{escape(picture.caption)}”<br>" * bool(picture.caption)
    note += f"{where.width} x {where.height} px, {windows}, L = {height} x {width} pixel embeddings"
    truth = figures.overlay(small, blocks(picture.truth, small), colours(picture, names)[0])
    return [
        (f"{run}: {picture.title}", png(small, click), note),
        ("Ground truth", png(truth, click, labels=picture.truth, classes=picture.classes), ""),
    ]


@functools.lru_cache(maxsize=2)
def training(view, picture, click, text, other, names, alpha, beta, k):
    """What the losses select. Arguments: see View.select."""
    small, selected = background(picture), view.select(text, other, names, alpha, beta, k)
    values, place, masks = selected["similarity"], selected["positive"], (selected["object"], selected["region"])
    of_object, of_region = ((png(figures.highlight(small, mask), click), f"{mask.sum()} of {mask.size} pixels") for mask in masks)
    rank, note = top_count(k, values.size), f"S = {values[place]:.2f}; the first pixel has {values.max():.2f}"
    return [
        (f"Similarity S of each pixel to “{text}”", *heat(small, click, values, figures.SIMILARITY)),
        (f"Object: the top {alpha:.0%} for “{text}”", *of_object),
        (f"Semi-hard positive: rank {rank} of {values.size}", png(small, click, cross=(np.array(place) + 0.5) / values.shape), note),
        (f"Hard negative: the top {beta:.1%} for “{other}”", *of_region),
    ]


@functools.lru_cache(maxsize=2)
def labelling(view, picture, click, text, names, others, unit, meta_points, threshold):
    """How each pixel gets its label. others, threshold: see Segmenter.segment; threshold None means no background.

    A run that learned no groups shows meta-points for the unit learned-group.
    """
    small, unit = background(picture), "meta-point" if unit == "learned-group" and view.segmenter.grouping is None else unit
    formed = view.form(unit, meta_points)
    scores = view.score(formed, names + others, picture.truth.shape)
    labels = scores.labels(view.segmenter.scale, threshold, len(others)).cpu().numpy()
    classes = names if threshold is None else (BACKGROUND, *names)
    units = figures.unit_borders(figures.overlay(small, blocks(formed.ids % len(UNIT_COLOURS), small), UNIT_COLOURS), formed.ids)
    window, own, size, texts = view.explain(formed, scores, names + others, click)
    rows = [(name, f"{score:.3f}", f"{share:.1%}", f"{cosine:.3f}") for name, score, share, cosine in texts]
    table = tabulate(rows, ["at the ring", "score", "softmax", "its unit"], tablefmt="html", disable_numparse=True)
    cosines, ends = heat(small, click, view.unit_scores(formed, text, names), figures.SCORE)
    of_classes, judged = colours(picture, classes)[1], errors(labels, classes, picture.truth, picture.classes)
    painted = png(figures.overlay(small, blocks(labels, small), of_classes), click, labels=labels, classes=classes)
    own = f"at the ring: unit {own} of window {window}, {size} of its {formed.of_windows[0].numel()} pixels"
    wrong = f"{(judged == WRONG).sum()} of {(judged != NOT_JUDGED).sum()} judged pixels are wrong (orange)"
    return [
        (f"{len(np.unique(formed.ids))} units: {unit}", png(units, click, (formed.points + 0.5) / formed.ids.shape), own),
        (f"Score of each unit: cosine with “{text}”", cosines, ends + table),
        ("Label map", painted, legend(classes, of_classes, labels)),
        ("Error", png(figures.overlay(small, blocks(judged, small), JUDGED), click), wrong),
    ]


@functools.lru_cache(maxsize=2)
def background(picture):
    """The image of a sources.Picture in the size of a panel: (H, W, 3) uint8."""
    return np.asarray(ImageOps.contain(picture.image, (SIZE, SIZE), Image.Resampling.LANCZOS))


def colours(picture, names):
    """Colours (C, 3) uint8 of the picture's classes, and of names. Equal names have equal colours."""
    known = list(dict.fromkeys([BACKGROUND, *picture.classes, *names]))
    palette = figures.palette(known)
    return [palette[[known.index(name) for name in some]] for some in (picture.classes, names)]


def blocks(values, small):
    """A map (h, w, ...) enlarged to the size of a picture, each entry a block: (H, W, ...)."""
    rows, columns = (np.arange(length) * side // length for length, side in zip(small.shape[:2], values.shape[:2], strict=True))
    return values[rows][:, columns]


def heat(small, click, values, name):
    """A map (h, w) in a matplotlib colour map: PNG, and what its colours stand for."""
    low, high = values.min(), values.max()
    return png(blocks(figures.heat(values, low, high, name), small), click), f"{low:.2f} (dark) to {high:.2f} (bright)"


def legend(names, of_classes, labels):
    """The classes of a label map with their colours and shares, largest first, then the names of the others. HTML."""
    shares = np.bincount(labels.flat, minlength=len(names)) / labels.size
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    found = [f'<span style="color: {to_hex(of_classes[i] / 255)}">■</span> {escape(names[i])} {shares[i]:.1%}' for i in order]
    absent = ", ".join(escape(name) for i, name in enumerate(names) if not shares[i])
    return " ".join(found) + f"<br>in no pixel: {absent}" * bool(absent)


def png(array, click, dots=(), cross=None, labels=None, classes=()):
    """An array (H, W, 3) uint8 as PNG, with marks at places like `click`.

    dots: several places. cross: a selected pixel. labels (h, w) and classes: names to write into large regions.
    """
    image = Image.fromarray(array)
    draw, (width, height) = ImageDraw.Draw(image), image.size
    outlined = {"fill": "white", "anchor": "mm", "stroke_width": 2, "stroke_fill": "black"}
    for index, x, y in () if labels is None else figures.large_regions(labels, classes):
        draw.text(((x + 0.5) * width / labels.shape[1], (y + 0.5) * height / labels.shape[0]), classes[index], font=TEXT, **outlined)
    for down, across in dots:
        draw.circle((across * width, down * height), 2.5, "white", "black")
    if cross is not None:
        draw.text((cross[1] * width, cross[0] * height), "+", font=CROSS, **outlined)
    for radius, colour, stroke in ((8, "black", 4), (7, "white", 2)):
        draw.circle((click[1] * width, click[0] * height), radius, outline=colour, width=stroke)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
