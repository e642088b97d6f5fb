"""Matplotlib figures of pictures and masks for the notebooks. No function computes a result."""

import itertools
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import withStroke
from scipy import ndimage

from ..benchmarks.layouts import IGNORED
from .colours import SCORE, SIMILARITY, heat, palette

plt.rcParams |= {"savefig.dpi": 110, "savefig.bbox": "tight"}
NAMED = 40  # maximum number of classes in a legend: those with the most pixels
LARGE = 0.06  # minimum share of the picture for a region to be named
EDGE = 0.18  # share of a picture's width: names closer than this to an edge are written away from it
UNMARKED = 0.35  # brightness outside a mask
PAINT = 0.75  # strength of a label map's colours over its picture
CAPTION = 8.5  # points


def grid(pictures, titles=None, size=1.9, captions=None, title=None):
    """A grid of pictures without axes.

    pictures: rows of (H, W, 3) arrays. titles: column titles. captions: rows of texts below the pictures, "" for none. title: figure
    title. size: inches per picture.
    """
    figure, axes = plt.subplots(
        len(pictures), len(pictures[0]), squeeze=False, figsize=(size * len(pictures[0]), size * len(pictures)), layout="constrained"
    )
    for axis, picture in zip(axes.flat, itertools.chain(*pictures), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, text in zip(axes[0], titles or [], strict=False):
        axis.set_title(wrapped(text, size, 10), fontsize=10)
    if captions:
        texts = [[wrapped(text, size) for text in row] for row in captions]
        for axis, text in zip(axes.flat, itertools.chain(*texts), strict=True):
            axis.set_xlabel(text, fontsize=CAPTION, labelpad=3)
        lines = sum(max(text.count("\n") + bool(text) for text in row) for row in texts)
        figure.set_figheight(figure.get_figheight() + lines * 1.3 * CAPTION / 72)  # the pictures keep their size
    if title:
        title = wrapped(title, figure.get_figwidth(), 12)
        figure.suptitle(title, fontsize=12)
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * (1 + title.count("\n")))
    return figure


def wrapped(text, inches, points=CAPTION):
    """Wrap a text to a width. Existing line breaks are kept."""
    letters = int(inches * 72 / (0.6 * points))
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, letters))


def colour_bar(figure, low, high, name, label):
    """Add a colour bar next to a grid, for colours.heat between low and high."""
    mappable = ScalarMappable(plt.Normalize(low, high), name)
    bar = figure.colorbar(mappable, ax=figure.axes, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=CAPTION + 1)
    bar.ax.tick_params(labelsize=CAPTION)
    bar.outline.set_visible(False)


def overlay(image, labels, colours):
    """Paint a label map over its picture in greyscale, so that colours match the legend; ignored pixels are grey.

    labels: (H, W) indices into colours, (C, 3) uint8. Returns (H, W, 3) uint8.
    """
    painted = np.vstack([colours, np.full((IGNORED + 1 - len(colours), 3), 128, np.uint8)])[np.asarray(labels)]
    grey = np.asarray(image).mean(-1, keepdims=True)
    return (grey * (1 - PAINT) + painted * PAINT).astype(np.uint8)


def legend(figure, classes, colours, shown):
    """Name the colours of the classes in `shown` (indices) below a figure."""
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[index] / 255) for index in shown]
    names = [classes[index] for index in shown]
    columns = max(1, int(figure.get_figwidth() * 72 / (5 * max(map(len, names), default=1) + 35)))  # in points; a letter takes 5
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))  # the pictures keep their size
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def large_regions(labels, classes):
    """Positions for class names: (class index, x, y) for each large region, at the pixel deepest inside it. labels (H, W)."""
    for index in np.unique(labels[labels < len(classes)]):
        regions, _ = ndimage.label(labels == index)
        for region in np.flatnonzero(np.bincount(regions.flat)[1:] >= LARGE * labels.size) + 1:
            depth = ndimage.distance_transform_edt(np.pad(regions == region, 1))[1:-1, 1:-1]  # a border is an edge too
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            yield index, x, y


def name_regions(axis, labels, classes):
    """Write class names into their large regions. labels (H, W). Returns the indices of the named classes."""
    named, width = set(), labels.shape[1]
    for index, x, y in large_regions(labels, classes):
        side = "left" if x < EDGE * width else "right" if x > (1 - EDGE) * width else "center"
        text = axis.text(x, y, classes[index], color="white", fontsize=7.5, ha=side, va="center", clip_on=True)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
        named.add(index)
    return named


def segmentations(rows, titles, classes, captions=None, title=None):
    """Rows of a picture and label maps painted over it. Large regions carry class names; a legend lists classes left unnamed somewhere.

    rows: lists of (picture, label map, label map, ...), the label maps (H, W) indices into classes. Other arguments as in `grid`.
    """
    colours = palette(classes)
    pictures = [[np.asarray(image), *(overlay(image, labels, colours) for labels in maps)] for image, *maps in rows]
    figure = grid(pictures, titles, 2.3, captions, title=title)
    maps = [None if index == 0 else np.asarray(labels) for row in rows for index, labels in enumerate(row)]
    shown = [(axis, labels) for axis, labels in zip(figure.axes, maps, strict=True) if labels is not None]
    unnamed = set().union(*({*np.unique(labels)} - name_regions(axis, labels, classes) for axis, labels in shown))
    pixels = sum(np.bincount(labels[labels < len(classes)], minlength=len(classes)) for _, labels in shown)
    others = [index for index in np.argsort(-pixels, kind="stable") if pixels[index] and index in unnamed]
    if others:
        legend(figure, classes, colours, sorted(others[:NAMED]))
    if len(others) > NAMED:
        figure.supxlabel(f"the {NAMED} classes of the most pixels; {len(others) - NAMED} more are shown", fontsize=9)
    return figure


def unit_borders(image, assignment):
    """Draw unit borders in white over a picture. assignment (h, w): the unit of each pixel embedding."""
    picture = np.array(image)
    height, width = picture.shape[:2]
    units = np.asarray(assignment)[np.arange(height) * assignment.shape[0] // height][:, np.arange(width) * assignment.shape[1] // width]
    border = np.zeros_like(units, bool)
    border[1:] |= units[1:] != units[:-1]
    border[:, 1:] |= units[:, 1:] != units[:, :-1]
    picture[border] = 255
    return picture


def highlight(image, mask):
    """Dim a picture outside a mask. mask (h, w) bool, per pixel embedding, drawn in blocks."""
    picture = np.asarray(image)
    height, width = picture.shape[:2]
    blocks = np.asarray(mask)[np.arange(height) * mask.shape[0] // height][:, np.arange(width) * mask.shape[1] // width]
    return (picture * np.where(blocks, 1, UNMARKED)[..., None]).astype(np.uint8)


def heats(rows, captions, label, name=SCORE, titles=None, title=None):
    """Pictures, each with maps of values on one common scale, and a colour bar.

    rows: lists of (picture, map (h, w), ...) of equal length. label: what the values are. name: a colour map. Others as in `grid`.
    """
    values = np.concatenate([np.ravel(found) for _, *maps in rows for found in maps])
    low, high = np.quantile(values, [0.01, 0.99])  # a single pixel does not set the scale
    pictures = [[picture, *(heat(found, low, high, name) for found in maps)] for picture, *maps in rows]
    figure = grid(pictures, titles, 2.1, captions, title=title)
    colour_bar(figure, low, high, name, label)
    return figure


def correspondences(pictures, texts, found, shown, title=None):
    """The pseudo-correspondences of training pairs, one row per pair.

    pictures: (H, W, 3) arrays, and texts: str, of a batch of pairs. found: from mgca.correspondences for that batch, each map as
    (h, w). shown: indices of the pairs to draw.
    """
    columns = ("pair", "similarity S[i, i]", "object mask M", "semi-hard pixel", "hard negative region")
    similarities = np.asarray(found["similarity"])[list(shown)]
    low, high = similarities.min(), similarities.max()
    rows, captions = [], []
    for i in shown:
        similarity = np.asarray(found["similarity"][i])
        of_object, of_region = (highlight(pictures[i], found[level][i]) for level in ("object", "region"))
        rows.append([pictures[i], heat(similarity, low, high, SIMILARITY), of_object, pictures[i], of_region])
        positive = similarity.flat[int(found["positive"][i])]
        other = texts[int(found["negative"][i])]
        captions.append([f"pair {i}\n“{texts[i]}”", "", "", f"S = {positive:.2f}; largest {similarity.max():.2f}", f"for “{other}”"])
    figure = grid(rows, columns, 2.1, captions, title=title)
    for line, i in enumerate(shown):
        h, w = found["object"][i].shape
        height, width = np.shape(pictures[i])[:2]
        row, column = divmod(int(found["positive"][i]), w)
        cross(figure.axes[line * len(columns) + 3], (column + 0.5) * width / w - 0.5, (row + 0.5) * height / h - 0.5)
    colour_bar(figure, low, high, SIMILARITY, "S = V·t (Eq. 2)")
    return figure


def cross(axis, x, y):
    """Mark a pixel of a picture."""
    for colour, width in (("black", 4), ("white", 2)):
        axis.plot(x, y, "+", color=colour, markersize=14, markeredgewidth=width)


def picture_grid(pictures, captions, columns):
    """Pictures of one size or several in rows of `columns`, each with its caption. The last row may be shorter."""
    pictures, captions = list(pictures), list(captions)
    missing = -len(pictures) % min(columns, len(pictures))
    filled, below = pictures + [np.full((1, 1, 3), 255, np.uint8)] * missing, captions + [""] * missing
    width = min(columns, len(pictures))
    starts = range(0, len(filled), width)
    return grid([filled[start : start + width] for start in starts], captions=[below[start : start + width] for start in starts])
