"""Colours of classes: the same everywhere, and apart for normal and for colour-blind vision by measures that the code does not use."""

import numpy as np
import pytest

from ovseg.study import colours
from ovseg.world import scenes

# Viénot, Brettel and Mollon 1999, on linear RGB: another model of colour blindness than the code's.
DEUTERANOPE = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
PROTANOPE = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = np.array([0.95047, 1, 1.08883])


def distances(palette, vision=None):
    """CIELAB distances of all pairs of colours (n, 3) 0..255, seen through a matrix on linear RGB."""
    share = np.asarray(palette) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ (np.eye(3) if vision is None else vision).T
    x, y, z = np.moveaxis(np.cbrt(np.clip(linear, 0, 1) @ TO_XYZ.T / WHITE), -1, 0)  # none is so dark that the cube root does not hold
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
    first, second = np.triu_indices(len(lab), 1)
    return np.linalg.norm(lab[first] - lab[second], axis=-1)


@pytest.mark.parametrize("vision, least", [(None, 17), (DEUTERANOPE, 14), (PROTANOPE, 10)])
def test_the_worlds_classes_are_apart(vision, least):
    palette = colours.palette(scenes.CLASSES)
    assert len(palette) == 22 and distances(palette, vision).min() > least


def test_curves_are_apart():
    series = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours.SERIES[:4]]
    assert min(distances(series, vision).min() for vision in (None, DEUTERANOPE, PROTANOPE)) > 15


def test_a_class_has_one_colour_in_all_lists():
    every = dict(zip(scenes.CLASSES, colours.palette(scenes.CLASSES).tolist(), strict=True))
    some = ["background", "sky", "dog", "car", "snow"]
    background, sky, dog, car, snow = colours.palette(some).tolist()
    assert background == [0, 0, 0] and [sky, car, snow] == [every[name] for name in ("sky", "car", "snow")]
    assert dog not in (sky, car, snow)


def test_names_of_another_list_keep_their_colours_without_background():
    names = [f"class {number}" for number in range(171)]
    assert np.array_equal(colours.palette(["background", *names])[1:], colours.palette(names))
    assert len(np.unique(colours.palette(names), axis=0)) == 171


def test_a_longer_sequence_begins_with_a_shorter_one():
    assert np.array_equal(colours.sequence(40)[:9], colours.sequence(9)) and len(colours.sequence(3)) == 3


def test_no_names_no_colours():
    assert colours.palette([]).shape == (0, 3)


def test_stuff_looks_like_itself():
    grass, water, sky = (colours.palette([name])[0].astype(int) for name in ("grass", "water", "sky"))
    assert grass.argmax() == 1 and water.argmax() == 2 and sky.argmax() == 2


def test_heat_spans_the_colour_map_and_clips():
    found = colours.heat(np.array([[-5.0, 0, 1, 9]]), 0, 1, "viridis")
    assert np.array_equal(found[0, 0], found[0, 1]) and np.array_equal(found[0, 2], found[0, 3])
    assert found[0, 1].tolist() == [68, 1, 84] and found[0, 2].tolist() == [253, 231, 36]
