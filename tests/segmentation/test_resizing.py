"""Resizing of pictures against OpenCV's and Pillow's own, and mmcv's rule of sizes, restated."""

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import changed

from ovseg.segmentation.resizing import opencv_bilinear, resized, resized_size


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(height, width, to_height, to_width, pixels=None):
    pixels = noise(height, width) if pixels is None else pixels
    expected = cv2.resize(pixels, (to_width, to_height), interpolation=cv2.INTER_LINEAR)
    found = opencv_bilinear(pixels, to_height, to_width)
    assert found.dtype == np.uint8 and np.array_equal(found, expected), (pixels.shape, expected.shape)


def test_every_pixel_is_opencvs_for_sizes_up_and_down():
    for height, width, to_height, to_width in np.random.default_rng(0).integers(1, 90, (1000, 4)).tolist():
        check(height, width, to_height, to_width)


def test_every_pixel_is_opencvs_for_sides_of_one_pixel_halves_and_doubles():
    for height, width in [(1, 1), (1, 7), (7, 1), (2, 2), (6, 8), (31, 64), (64, 33)]:
        for to_height, to_width in [(1, 1), (1, 9), (9, 1), (height * 2, width * 2), (height, width), (height, 3), (3, width), (50, 50)]:
            check(height, width, to_height, to_width)
        check(height, width, max(1, height // 2), max(1, width // 2))


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (427, 640), (1024, 2048), (512, 683), (1300, 97), (2049, 31)])
def test_every_pixel_is_opencvs_for_pictures_of_the_benchmarks_sizes(height, width):
    check(height, width, *resized_size(height, width, changed(resize="opencv-bilinear", short_side=448, max_ratio=4.5715)))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_picture_of_one_value_stays_as_opencv_leaves_it(value):
    check(13, 17, 40, 41, np.full((13, 17, 3), value, np.uint8))


def by_mmcv(height, width, longest, shortest):
    """What mmcv.imrescale makes of a size with the scale (longest, shortest)."""
    factor = min(longest / max(height, width), shortest / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def test_sizes_are_mmcvs_for_every_size():
    settings = changed(resize="opencv-bilinear", short_side=448, max_ratio=4.5715)
    sizes = [(height, width) for height in range(1, 700, 7) for width in range(1, 2300, 11)]
    for height, width in sizes:
        expected = by_mmcv(height, width, 2048, 448)
        assert resized_size(height, width, settings) == tuple(max(1, side) for side in expected)
    usual = changed(short_side=448, max_ratio=4.5715)
    others = [size for size in sizes if resized_size(*size, usual) != resized_size(*size, settings)]
    assert 0 < len(others) < 0.005 * len(sizes)  # half pixels, which Python rounds to even, and 2048.03 for 2048


def test_bicubic_is_pillows():
    image = Image.fromarray(noise(40, 53))
    expected = np.asarray(image.resize((70, 31), Image.Resampling.BICUBIC))
    assert np.array_equal(resized(image, 31, 70, "bicubic"), expected)
    assert not np.array_equal(resized(image, 31, 70, "opencv-bilinear"), expected)
    for how in ("bicubic", "opencv-bilinear"):
        assert np.array_equal(resized(image, 40, 53, how), np.asarray(image))
