"""Pictures, masks and curves that the notebooks draw, by matplotlib. Each takes data and returns a figure; none computes a result."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb
from matplotlib.patheffects import withStroke
from scipy import ndimage

from ..benchmarks.layouts import IGNORED
from ..segmentation.windows import BACKGROUND

plt.rcParams |= {"savefig.dpi": 110, "savefig.bbox": "tight"}
NAMED = 40  # classes in a legend: those of the most pixels
LARGE = 0.06  # share of a picture that a region needs to be named in it
UNMARKED = 0.35  # brightness of what a mask leaves out
PAINT = 0.75  # strength of a label map's colours over its picture


def palette(classes):
    """Colours of classes, (C, 3) uint8: background black, the others around the wheel in three lightnesses.

    A class has the colour of its place among those that are not background, however many follow: the same in `things` and `scenes`.
    """
    named = sum(name != BACKGROUND for name in classes)
    hues, values = np.arange(named) * 0.618 % 1, np.resize([0.95, 0.6, 0.8], named)  # the golden ratio keeps neighbours apart
    colours = hsv_to_rgb(np.stack([hues, np.resize([0.85, 0.9, 0.5], named), values], -1))
    return (np.concatenate([np.zeros((int(BACKGROUND in classes), 3)), colours]) * 255).astype(np.uint8)


def grid(pictures, titles=None, size=1.9):
    """A grid of pictures without axes. pictures: rows of (H, W, 3) arrays; titles: of the columns."""
    figure, axes = plt.subplots(
        len(pictures), len(pictures[0]), squeeze=False, figsize=(size * len(pictures[0]), size * len(pictures)), layout="constrained"
    )
    for axis, picture in zip(axes.flat, itertools.chain(*pictures), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=10)
    return figure


def overlay(image, labels, colours):
    """A label map painted over its picture in grey, so that colours stay those of the legend; ignored pixels are grey.

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
    """Where the names of classes go: (index, x, y) of each large region, the pixel that lies deepest in it. labels (H, W)."""
    for index in np.unique(labels[labels < len(classes)]):
        regions, _ = ndimage.label(labels == index)
        for region in np.flatnonzero(np.bincount(regions.flat)[1:] >= LARGE * labels.size) + 1:
            depth = ndimage.distance_transform_edt(np.pad(regions == region, 1))[1:-1, 1:-1]  # a border is an edge too
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            yield index, x, y


def name_regions(axis, labels, classes):
    """Write the names of classes into their large regions. labels (H, W). Returns the indices of the classes that it named."""
    named = set()
    for index, x, y in large_regions(labels, classes):
        text = axis.text(x, y, classes[index], color="white", fontsize=7, ha="center", va="center", clip_on=True)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
        named.add(index)
    return named


def segmentations(rows, titles, classes):
    """Picture, then label maps painted over it, large regions with the names of their classes; a legend has those unnamed somewhere.

    rows: lists of (picture, label map, label map, ...), the label maps (H, W) indices into classes.
    """
    colours = palette(classes)
    figure = grid([[np.asarray(image), *(overlay(image, labels, colours) for labels in maps)] for image, *maps in rows], titles, size=2.3)
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
    """A picture with the borders of its units in white. assignment (h, w): the unit of each pixel embedding."""
    picture = np.array(image)
    height, width = picture.shape[:2]
    units = np.asarray(assignment)[np.arange(height) * assignment.shape[0] // height][:, np.arange(width) * assignment.shape[1] // width]
    border = np.zeros_like(units, bool)
    border[1:] |= units[1:] != units[:-1]
    border[:, 1:] |= units[:, 1:] != units[:, :-1]
    picture[border] = 255
    return picture


def highlight(image, mask):
    """A picture dimmed outside a mask. mask (h, w) bool, of pixel embeddings, drawn in blocks."""
    picture = np.asarray(image)
    height, width = picture.shape[:2]
    blocks = np.asarray(mask)[np.arange(height) * mask.shape[0] // height][:, np.arange(width) * mask.shape[1] // width]
    return (picture * np.where(blocks, 1, UNMARKED)[..., None]).astype(np.uint8)


def heat(similarity):
    """A similarity map as colours, (h, w) -> (h, w, 3) uint8, lowest dark, highest bright."""
    low, high = similarity.min(), similarity.max()
    return (plt.get_cmap("magma")((similarity - low) / max(high - low, 1e-9))[..., :3] * 255).astype(np.uint8)


def correspondences(pictures, texts, found, shown):
    """The pseudo-correspondences of training pairs, a row each.

    pictures: (H, W, 3) arrays and texts: str, of the pairs of a batch. found: of mgca.correspondences for that
    batch, each map as (h, w). shown: which pairs to draw.
    """
    columns = ("pair", "similarity S[i, i]", "object mask M", "semi-hard pixel", "hard negative region")
    rows = []
    for i in shown:
        pixel = np.zeros(found["object"][i].shape, bool)
        pixel.flat[int(found["positive"][i])] = True
        masks = (found["object"][i], pixel, found["region"][i])
        rows.append([pictures[i], heat(found["similarity"][i]), *(highlight(pictures[i], mask) for mask in masks)])
    figure = grid(rows, columns, size=2.1)
    for line, i in enumerate(shown):
        left, right = figure.axes[line * len(columns)], figure.axes[(line + 1) * len(columns) - 1]
        left.text(0, -0.04, f"“{texts[i]}”", transform=left.transAxes, fontsize=8, va="top")
        right.text(1, -0.04, f"of “{texts[int(found['negative'][i])]}”", transform=right.transAxes, fontsize=8, va="top", ha="right")
    return figure


def training_curve(history):
    """Losses and gates over steps. history: DataFrame of history.csv files, with a column `seed`; lines are means over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    mean = history.groupby("step").mean().drop(columns=["seed", "epoch", "lr"])
    gates = mean.pop("gate0"), mean.pop("gate1")
    mean.rolling(5, min_periods=1).mean().plot(ax=left, ylabel="loss", title="mean of 5 steps")
    np.tanh(pd.concat(gates, axis=1)).rename(columns="tanh({})".format).plot(ax=right, title="gates of the decoder")
    for axis in (left, right):
        axis.grid(alpha=0.4)
    return figure
