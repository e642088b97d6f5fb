"""Matplotlib figures of pictures, label maps and maps of values, and the colours of classes. Files of a segmentation."""

import functools
import itertools
import sys
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.colors import hsv_to_rgb, to_rgba_array
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy import ndimage

from ..benchmarks.layouts import ignored
from ..benchmarks.miou import MeanIoU, mean
from ..data.files import write_json, write_whole
from ..segmentation.windows import BACKGROUND

SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"]  # Okabe and Ito, jfly.uni-koeln.de/color
# Colours of the rendered world's classes. The first seven are Okabe and Ito's for classes; each later one was chosen to be furthest from
# those before it, black and grey, for normal and red-green colour-blind vision. Stuff has the colours most like its own.
WORLD = {
    "sand": "#e69f00", "sky": "#56b4e9", "grass": "#009e73", "car": "#f0e442", "water": "#0072b2", "wood": "#d55e00", "bus": "#cc79a7",
    "house": "#80ffff", "tree": "#80331a", "boat": "#663380", "fish": "#ffb2b2", "bird": "#8080e6", "flower": "#99b280",
    "mushroom": "#b2ccff", "balloon": "#994c80", "road": "#4c664c", "snow": "#ffe6b2", "umbrella": "#4c4cb2", "rocket": "#99e680",
    "penguin": "#00e6cc", "brick": "#994c00", "clock": "#66804c",
}  # fmt: skip
SCORE, SIMILARITY = "viridis", "magma"  # colour maps of cosines, and of S = V·t
NAMED = 40  # maximum number of classes in a legend: those with the most pixels
LARGE = 0.06  # minimum share of the picture for a region to be named
EDGE = 0.18  # share of a picture's width: names closer than this to an edge are written away from it
UNMARKED = 0.35  # brightness outside a mask
PAINT = 0.75  # strength of a label map's colours over its picture
CAPTION = 8.5  # points
DRAWN = 1600  # pixels, the maximum longer side of a drawn segmentation: larger ones are shrunk to 10 inches
plt.rcParams |= {"savefig.dpi": 110, "savefig.bbox": "tight", "axes.prop_cycle": plt.cycler(color=SERIES), "image.cmap": SCORE}


def palette(classes):
    """Colours of classes, (C, 3) uint8: black for the background, and for each class of the rendered world always the same. Others take the
    free colours in order, then generated ones: the same in two lists that differ only in the background."""
    others = [name for name in classes if name not in WORLD and name != BACKGROUND]
    colours = [colour for name, colour in WORLD.items() if name not in classes]
    for number in range(len(others) - len(colours)):
        hue = 0.618034 * number % 1  # by the golden ratio, so that neighbours in the list are far apart
        colours.append(hsv_to_rgb((hue, (0.9, 0.45)[number % 2], (0.95, 0.75, 0.55)[number % 3])))
    colour_of = WORLD | dict(zip(others, colours, strict=False)) | {BACKGROUND: "black"}
    return np.round(255 * to_rgba_array([colour_of[name] for name in classes])[:, :3]).astype(np.uint8)


def heat(values, low, high, name=SCORE):
    """Colour a map, (h, w) -> (h, w, 3) uint8. low, high: values at the ends of the colour map `name`."""
    return (plt.get_cmap(name)((np.asarray(values) - low) / max(high - low, 1e-9))[..., :3] * 255).astype(np.uint8)


def grid(pictures, titles=None, size=1.9, captions=None, title=None):
    """A grid of pictures without axes: rows of (H, W, 3) arrays, the last may be shorter. titles: of columns. captions: rows of texts below
    the pictures, "" for none. title: of the figure. size: inches per picture."""
    rows, columns = len(pictures), len(pictures[0])
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(size * columns, size * rows), layout="constrained")
    for axis, picture in itertools.zip_longest(axes.flat, itertools.chain(*pictures)):
        axis.set(xticks=[], yticks=[], visible=picture is not None)
        axis.spines[:].set_visible(False)
        if picture is not None:
            axis.imshow(picture, interpolation="nearest")
    for axis, text in zip(axes[0], titles or [], strict=False):
        axis.set_title(wrapped(text, size, 10), fontsize=10)
    if captions:
        texts = [[wrapped(text, size) for text in row] for row in captions]
        for axis, text in zip(axes.flat, itertools.chain(*texts), strict=False):
            axis.set_xlabel(text, fontsize=CAPTION, labelpad=3)
        lines = sum(max(text.count("\n") + bool(text) for text in row) for row in texts)
        figure.set_figheight(figure.get_figheight() + lines * 1.3 * CAPTION / 72)  # the pictures keep their size
    if title:
        title = figure.suptitle(wrapped(title, figure.get_figwidth(), 12), fontsize=12).get_text()
        figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * (1 + title.count("\n")))
    return figure


def picture_grid(pictures, captions, columns):
    """Pictures in rows of `columns`, each with its caption."""
    starts = range(0, len(pictures), columns)
    return grid([pictures[i : i + columns] for i in starts], captions=[captions[i : i + columns] for i in starts])


def wrapped(text, inches, points=CAPTION):
    """Wrap a text to a width. Existing line breaks are kept."""
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, int(inches * 72 / (0.6 * points))))


def colour_bar(figure, low, high, name, label):
    """Add a colour bar next to a grid, for `heat` between low and high."""
    bar = figure.colorbar(ScalarMappable(plt.Normalize(low, high), name), ax=figure.axes, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=CAPTION + 1)
    bar.ax.tick_params(labelsize=CAPTION)
    bar.outline.set_visible(False)


def overlay(image, labels, colours):
    """Paint a label map (H, W), indices into colours (C, 3) uint8, over its picture in greyscale: (H, W, 3) uint8. Ignored is grey."""
    painted = np.vstack([colours, np.full((ignored(len(colours)) + 1 - len(colours), 3), 128, np.uint8)])[np.asarray(labels)]
    grey = np.asarray(image).mean(-1, keepdims=True)
    return (grey * (1 - PAINT) + painted * PAINT).astype(np.uint8)


def legend(figure, classes, colours, shown):
    """Name the colours of the classes in `shown` (indices) below a figure."""
    handles, names = [plt.Rectangle((0, 0), 1, 1, color=colours[i] / 255) for i in shown], [classes[i] for i in shown]
    columns = max(1, int(figure.get_figwidth() * 72 / (5 * max(map(len, names), default=1) + 35)))  # in points; a letter takes 5
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))  # the pictures keep their size
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


@functools.cache
def written(names):
    """Names as figures write them: in an installed font that has their characters, or as their index if there is none. names: a tuple."""
    missing = set("".join(names)) - _characters(font_manager.findfont("DejaVu Sans"))
    for font in font_manager.fontManager.ttflist if missing else ():
        upright = font.style == "normal" and font.weight in (400, 500) and not font.name.startswith("Last Resort")  # which has boxes
        if upright and missing & _characters(font.fname):
            plt.rcParams["font.family"] = [*plt.rcParams["font.family"], font.name]
            missing -= _characters(font.fname)
    if missing:
        print(f"no installed font has {' '.join(sorted(missing))}: figures show such a class by its index", file=sys.stderr)
    return [str(index) if missing & set(name) else name for index, name in enumerate(names)]


def _characters(file):
    """The characters of a font's file; none of a font of bitmaps, as of coloured emoji, which Matplotlib cannot draw."""
    font = font_manager.get_font(file)
    return set(map(chr, font.get_charmap())) if font.scalable else set()


def large_regions(labels, classes):
    """Positions for class names: (class index, x, y) of the pixel deepest inside each large region of labels (H, W)."""
    for index in np.unique(labels[labels < len(classes)]):
        regions, _ = ndimage.label(labels == index)
        for region in np.flatnonzero(np.bincount(regions.flat)[1:] >= LARGE * labels.size) + 1:
            depth = ndimage.distance_transform_edt(np.pad(regions == region, 1))[1:-1, 1:-1]  # a border is an edge too
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            yield index, x, y


def name_regions(axis, labels, classes, size=7.5):
    """Write class names into their large regions. labels (H, W). Returns the indices of the named classes."""
    regions, width = list(large_regions(labels, classes)), labels.shape[1]
    style = {"color": "white", "fontsize": size, "va": "center", "path_effects": [withStroke(linewidth=1.5, foreground="black")]}
    for index, x, y in regions:
        side = "left" if x < EDGE * width else "right" if x > (1 - EDGE) * width else "center"
        axis.text(x, y, classes[index], ha=side, clip_on=True, **style)
    return {index for index, _, _ in regions}


def segmentations(rows, titles, classes, title=None):
    """Rows of a picture and label maps painted over it, {number: (picture, truth, label map, ...)}, the maps (H, W) indices into classes.
    A legend lists classes left unnamed somewhere. Below each predicted label map is its `miou`."""
    colours, maps = palette(classes), [np.asarray(labels) for _, *labels_of_row in rows.values() for labels in labels_of_row]
    pictures = [[np.asarray(image), *(overlay(image, labels, colours) for labels in of_row)] for image, *of_row in rows.values()]
    captions = [[f"picture {n}", "", *(miou(m, truth, classes) for m in predicted)] for n, (_, truth, *predicted) in rows.items()]
    figure = grid(pictures, titles, 2.3, captions, title=title)
    names = written(tuple(classes))
    axes = [axis for number, axis in enumerate(figure.axes) if number % len(pictures[0])]  # of the label maps
    unnamed = set().union(*({*np.unique(m)} - name_regions(axis, m, names) for axis, m in zip(axes, maps, strict=True)))
    pixels = sum(np.bincount(labels[labels < len(classes)], minlength=len(classes)) for labels in maps)
    others = [index for index in np.argsort(-pixels, kind="stable") if pixels[index] and index in unnamed]
    if others:
        legend(figure, names, colours, sorted(others[:NAMED]))
    if len(others) > NAMED:
        figure.supxlabel(f"the {NAMED} classes of the most pixels; {len(others) - NAMED} more are shown", fontsize=9)
    return figure


def miou(labels, truth, classes):
    """The mIoU of one label map as text, over the classes present in it or in its truth; "" if no pixel can be judged. Both (H, W)."""
    iou = MeanIoU(classes)
    iou.update(labels, truth)
    value = mean(iou.compute())
    return "" if value is None else f"mIoU {value:.1f}%"


def in_blocks(values, picture):
    """Enlarge a map to a picture, each value a block: (h, w, ...) -> (H, W, ...)."""
    (h, w), (height, width) = np.shape(values)[:2], np.shape(picture)[:2]
    return np.asarray(values)[np.arange(height) * h // height][:, np.arange(width) * w // width]


def unit_borders(image, assignment):
    """Draw unit borders in white over a picture. assignment (h, w): the unit of each pixel embedding."""
    units = in_blocks(assignment, image)
    border = (np.diff(units, axis=0, prepend=units[:1]) != 0) | (np.diff(units, axis=1, prepend=units[:, :1]) != 0)
    return np.where(border[..., None], np.uint8(255), image)


def highlight(image, mask):
    """Dim a picture outside a mask. mask (h, w) bool, per pixel embedding, drawn in blocks."""
    return (np.asarray(image) * np.where(in_blocks(mask, image), 1, UNMARKED)[..., None]).astype(np.uint8)


def correspondences(pictures, texts, mined, shown, title=None):
    """The pseudo-correspondences of training pairs, a row for each index in `shown`. pictures (H, W, 3), texts: of a batch of pairs. mined:
    from mgca.correspondences for that batch, each map as (h, w)."""
    columns = ("pair", "similarity S[i, i]", "object mask M", "semi-hard pixel", "hard negative region")
    similarities = np.asarray(mined["similarity"])
    low, high = similarities[list(shown)].min(), similarities[list(shown)].max()
    rows, captions = [], []
    for i in shown:
        of_object, of_region = (highlight(pictures[i], mined[level][i]) for level in ("object", "region"))
        rows.append([pictures[i], heat(similarities[i], low, high, SIMILARITY), of_object, pictures[i], of_region])
        positive = similarities[i].flat[int(mined["positive"][i])]
        below = (f"S = {positive:.2f}; largest {similarities[i].max():.2f}", f"for “{texts[int(mined['negative'][i])]}”")
        captions.append([f"pair {i}\n“{texts[i]}”", "", "", *below])
    figure = grid(rows, columns, 2.1, captions, title=title)
    for axis, i in zip(figure.axes[3 :: len(columns)], shown, strict=True):
        (h, w), (height, width) = similarities[i].shape, np.shape(pictures[i])[:2]
        row, column = divmod(int(mined["positive"][i]), w)
        x, y = (column + 0.5) * width / w - 0.5, (row + 0.5) * height / h - 0.5
        for colour, line in (("black", 4), ("white", 2)):
            axis.plot(x, y, "+", color=colour, markersize=14, markeredgewidth=line)
    colour_bar(figure, low, high, SIMILARITY, "S = V·t (Eq. 2)")
    return figure


def plan_outputs(pictures, out, force=False, endings=("overlay.png", "labels.png", "json")):
    """Plan the files to write into the folder out: {picture: [overlay, label map, areas]}, all of them Path. Raises ValueError if two
    pictures have the same name, or if a file is one of the pictures or (without force) exists."""
    outputs = {picture: [out / f"{picture.stem}.{ending}" for ending in endings] for picture in pictures}
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
    labels = np.asarray(Image.fromarray(segmentation.labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    colours = palette(segmentation.names)
    figure = grid([[overlay(image.resize(size), labels, colours)]])
    figure.set_size_inches(*(max(1, 10 * side / max(size)) for side in size))
    names = [name.replace("$", r"\$") for name in written(segmentation.names)]  # no formulas
    name_regions(figure.axes[0], labels, names, 12)
    areas = [*percentages(segmentation).values()]
    shown = [index for index in np.argsort(areas)[::-1] if areas[index]][: NAMED]
    legend(figure, [f"{name} {area:.1f}%" for name, area in zip(names, areas, strict=True)], colours, shown)
    return figure


def write_comparison(file, overlays, titles):
    """Write one figure of overlays of the same picture, files of `write_segmentation`, side by side."""
    figure = grid([[plt.imread(overlay) for overlay in overlays]], titles, 7)
    plt.close(figure)
    write_whole(file, lambda part: figure.savefig(part, format="png"))


def write_segmentation(files, image, segmentation, made_with):
    """Write the files that `plan_outputs` plans for a picture. made_with: a dict of further entries for the JSON. The label map is a PNG of
    mode P: values are indices into segmentation.names (at most 256), the palette holds their colours."""
    overlay, labels, areas = files
    label_map = Image.fromarray(segmentation.labels.astype(np.uint8))
    label_map.putpalette(palette(segmentation.names).tobytes())
    write_whole(labels, lambda part: label_map.save(part, "PNG"))
    figure = draw_overlay(image, segmentation)
    plt.close(figure)  # which stays usable
    write_whole(overlay, lambda part: figure.savefig(part, format="png"))
    about = made_with | {"width": image.width, "height": image.height, "others": segmentation.others, "threshold": segmentation.threshold}
    about |= {"percent": {name: round(value, 3) for name, value in percentages(segmentation).items()}}
    write_json(areas, about, ensure_ascii=False)
