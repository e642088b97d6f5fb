"""Resizing of pictures: sizes by mmcv's rule restated, pixels by hand and by Pillow."""

import numpy as np
from PIL import Image
from tiny import changed, picture

from ovseg.segmentation.resizing import resized, resized_size

OPENCV = changed(resize="opencv-bilinear", short_side=448, max_ratio=4.5715)
BICUBIC = changed(short_side=448, max_ratio=4.5715)


def by_mmcv(height, width, longest, shortest):
    """The size that mmcv.imrescale makes with the scale (longest, shortest)."""
    factor = min(longest / max(height, width), shortest / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def test_sizes_are_those_of_mmcv():
    sizes = [(height, width) for height in range(1, 700, 7) for width in range(1, 2300, 11)]
    for size in sizes:
        assert resized_size(*size, OPENCV) == tuple(max(1, side) for side in by_mmcv(*size, 2048, 448))
    others = [size for size in sizes if resized_size(*size, BICUBIC) != resized_size(*size, OPENCV)]
    assert 0 < len(others) < 0.005 * len(sizes)  # half pixels, which Python rounds to even, and 2048.03 for 2048


def test_opencv_bilinear_by_hand():
    row = np.array([[[0, 10, 200], [100, 20, 0]]], np.uint8)  # 1 x 2 pixels
    doubled = resized(Image.fromarray(row), 1, 4, "opencv-bilinear")  # between the centres, weights are 3/4 and 1/4
    assert doubled.dtype == np.uint8 and doubled[0].tolist() == [[0, 10, 200], [25, 13, 150], [75, 18, 50], [100, 20, 0]]
    ramp = np.arange(8, dtype=np.uint8).repeat(3).reshape(1, 8, 3) * 10
    assert resized(Image.fromarray(ramp), 1, 2, "opencv-bilinear")[0, :, 0].tolist() == [15, 55]  # the two pixels in the middle of four


def test_bicubic_is_that_of_pillow_and_an_equal_size_changes_nothing():
    image = Image.fromarray(picture(40, 53))
    assert np.array_equal(resized(image, 31, 70, "bicubic"), np.asarray(image.resize((70, 31), Image.Resampling.BICUBIC)))
    for how in ("bicubic", "opencv-bilinear"):
        assert np.array_equal(resized(image, 40, 53, how), np.asarray(image))
