"""Figures: what they show and say, and colours that are apart by measures that the code does not use."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from ovseg.segmentation.segmenter import Segmentation
from ovseg.study import figures
from ovseg.world import scenes

# Viénot, Brettel and Mollon 1999, on linear RGB: another model of colour blindness than that with which the colours were chosen.
DEUTERANOPE = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
PROTANOPE = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = np.array([0.95047, 1, 1.08883])


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def distances(palette, vision):
    """CIELAB distances of all pairs of colours (n, 3) 0..1, seen through a matrix on linear RGB."""
    share = np.asarray(palette)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ vision.T
    x, y, z = np.moveaxis(np.cbrt(np.clip(linear, 0, 1) @ TO_XYZ.T / WHITE), -1, 0)  # none is so dark that the cube root does not hold
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
    first, second = np.triu_indices(len(lab), 1)
    return np.linalg.norm(lab[first] - lab[second], axis=-1)


@pytest.mark.parametrize("vision, least", [(np.eye(3), 17), (DEUTERANOPE, 14), (PROTANOPE, 10)])
def test_colours_are_apart(vision, least):
    world = figures.palette(scenes.CLASSES)
    assert set(figures.WORLD) == set(scenes.CLASSES) and len(world) == 22
    assert distances(world / 255, vision).min() > least
    assert distances([to_rgb(colour) for colour in figures.SERIES[:4]], vision).min() > 15


def test_a_class_has_one_colour_in_all_lists():
    every = dict(zip(scenes.CLASSES, figures.palette(scenes.CLASSES).tolist(), strict=True))
    background, dog, *known = figures.palette(["background", "dog", "sky", "car", "snow"]).tolist()
    assert background == [0, 0, 0] and known == [every[name] for name in ("sky", "car", "snow")] and dog not in known
    names = [f"class {number}" for number in range(171)]
    assert np.array_equal(figures.palette(["background", *names])[1:], figures.palette(names))
    assert len(np.unique(figures.palette(names), axis=0)) == 171 and figures.palette([]).shape == (0, 3)


def test_long_texts_keep_to_their_width():
    picture, long = np.full((12, 16, 3), 200, np.uint8), "a very long caption of a picture that does not fit into one line of it"
    figure = figures.grid([[picture] * 3], ["one", "two", "three"], 2, [[long, long, ""]], title="run section.key=value, " * 8)
    assert {"one", "two", "three"} <= set(texts(figure))
    left, right = (axis.xaxis.label.get_window_extent() for axis in figure.axes[:2])
    title = figure._suptitle.get_window_extent()
    assert left.x1 <= right.x0 and title.x0 >= 0 and title.x1 <= figure.bbox.x1
    figure = figures.picture_grid([picture] * 5, list("abcde"), 3)  # the last row is shorter
    assert [axis.get_visible() for axis in figure.axes] == [True] * 5 + [False] and set("abcde") <= set(texts(figure))


def test_label_maps_carry_names_a_legend_and_their_miou():
    truth = np.zeros((20, 20), int)
    truth[5:7, 5:7], truth[:, 15:] = 1, 2
    half = np.where(truth == 1, 1, 0)  # sky 300 - 4 of 400 - 4 pixels, car right, tree wrong; 3 classes
    picture, columns, names = np.zeros((20, 20, 3), np.uint8), ["picture", "truth", "map"], ("sky", "car", "$5 tree", "sea")
    figure = figures.segmentations({7: (picture, truth, half)}, columns, names)
    assert figure.axes[1].texts[1].get_ha() == "right"  # away from the edge
    assert [axis.get_xlabel() for axis in figure.axes] == ["picture 7", "", f"mIoU {100 * (296 / 396 + 1) / 3:.1f}%"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["car"]  # those that no picture names
    overlay = figures.draw_overlay(Image.fromarray(picture), Segmentation(truth, names, None))
    assert [text.get_text() for text in overlay.legends[0].texts] == ["sky 74.0%", r"\$5 tree 25.0%", "car 1.0%"]
    for axis, tree in ((figure.axes[1], "$5 tree"), (overlay.axes[0], r"\$5 tree")):
        assert [text.get_text() for text in axis.texts] == ["sky", tree]
    overlay.canvas.draw()
    assert figures.miou(truth, np.full((20, 20), 255), ["sky", "car", "tree"]) == ""


def test_names_are_in_a_font_that_has_their_characters_or_their_index(capsys):
    labels, names = np.repeat([[0, 1, 2]], 12, 0).repeat(4, 1), ("пес", "Ⓐ", "猫🐶")
    assert not {"Ⓐ", "猫"} & set(map(chr, get_font(findfont("DejaVu Sans")).get_charmap()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a missing glyph
        written = texts(figures.segmentations({0: (np.zeros((12, 12, 3), np.uint8), labels)}, ["picture", "truth"], names))
    assert {"пес", "Ⓐ", "2"} <= set(written) and "猫🐶" not in written
    assert capsys.readouterr().err == "no installed font has 猫 🐶: figures show such a class by its index\n"


def test_borders_and_masks_are_drawn_in_blocks_and_heat_clips_at_its_ends():
    assert figures.heat(np.array([[-5.0, 0, 1, 9]]), 0, 1, "viridis")[0].tolist() == [[68, 1, 84]] * 2 + [[253, 231, 36]] * 2
    picture = np.full((4, 6, 3), 100, np.uint8)
    border = figures.unit_borders(picture, np.array([[0, 1], [2, 1]]))[..., 0] == 255
    assert border.tolist() == [[x == 3 or (y == 2 and x < 3) for x in range(6)] for y in range(4)]
    assert figures.highlight(picture, np.array([[True], [False]]))[..., 0].tolist() == [[100] * 6] * 2 + [[35] * 6] * 2


def test_correspondences_mark_the_positive_pixel():
    mined = {"similarity": np.arange(16.0).reshape(1, 4, 4), "object": np.ones((1, 4, 4), bool), "region": np.zeros((1, 4, 4), bool)}
    mined |= {"positive": np.array([6]), "negative": np.array([0])}
    figure = figures.correspondences([np.zeros((8, 8, 3), np.uint8)], ["a cat"], mined, [0], "run")
    x, y = figure.axes[3].lines[0].get_data()
    assert (list(x), list(y)) == ([4.5], [2.5])  # row 1, column 2 of blocks of 2 x 2 pixels
    assert {"S = 6.00; largest 15.00", "for “a cat”", "run"} <= set(texts(figure))
    assert figure.axes[-1].get_ylabel() == "S = V·t (Eq. 2)" and figure.axes[-1].get_ylim() == (0, 15)
