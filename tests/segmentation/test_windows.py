"""Where windows lie on a resized image, and how their scores become scores and labels of the picture."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import SETTINGS, bilinear, changed, picture

from ovseg.segmentation.resizing import resized, resized_size
from ovseg.segmentation.windows import WindowGrid, cut_windows, raw_labels, stitch, to_labels, window_grid, window_starts


def test_windows_cover_every_pixel_and_stay_inside():
    starts = [window_starts(length, 448, 224) for length in (100, 448, 449, 672, 700)]  # the paper's
    assert starts == [(0,), (0,), (0, 1), (0, 224), (0, 224, 252)]
    for length in range(1, 30):
        for window in range(1, 12):
            for stride in range(1, window + 1):
                starts = window_starts(length, window, stride)
                assert {pixel for start in starts for pixel in range(start, start + window)} >= set(range(length))
                assert list(starts) == sorted(set(starts)) and starts[0] == 0 and starts[-1] == max(0, length - window)
                assert len(starts) == 1 + max(0, -(-(length - window) // stride))  # no more than it takes


def test_the_shorter_side_gets_its_length_unless_the_longer_one_exceeds_its_ratio():
    for height, width in [(33, 47), (101, 101), (2, 9), (1, 1), (500, 333), (5, 2000), (1, 100000)]:
        where, ratio = window_grid(height, width, changed(max_ratio=3.0)), max(height, width) / min(height, width)
        expected = (32, round(32 * ratio)) if ratio <= 3 else (max(1, round(96 / ratio)), 96)
        assert sorted((where.height, where.width)) == list(expected)
        assert (where.height < where.width) == (height < width) and len(where.positions) <= 5
    opencv, bicubic = (changed(resize=resize, short_side=448, max_ratio=4.5715) for resize in ("opencv-bilinear", "bicubic"))
    sizes, others = [(height, width) for height in range(1, 700, 17) for width in range(1, 2300, 23)], 0
    for height, width in sizes:
        factor = min(2048 / max(height, width), 448 / min(height, width))  # mmcv.imrescale to the scale (2048, 448)
        expected = tuple(max(1, int(side * factor + 0.5)) for side in (height, width))
        assert resized_size(height, width, opencv) == expected
        others += resized_size(height, width, bicubic) != expected
    assert 0 < others < 0.005 * len(sizes)  # half pixels, which Python rounds to even, and 2048.03 for 2048


def test_opencv_bilinear_by_hand_and_a_picture_of_the_right_size_as_it_is():
    ramp = np.arange(8, dtype=np.uint8).repeat(3).reshape(1, 8, 3) * 10
    assert resized(Image.fromarray(ramp), 1, 2, "opencv-bilinear")[0, :, 0].tolist() == [15, 55]  # the two pixels in the middle of four
    for how in ("bicubic", "opencv-bilinear"):
        assert np.array_equal(resized(Image.fromarray(picture(40, 53)), 40, 53, how), picture(40, 53))


@pytest.mark.parametrize("height, width", [(32, 47), (71, 45), (5, 3)])
def test_windows_are_the_pixels_at_their_positions_in_the_resized_image(height, width):
    image = Image.fromarray(picture(height, width))
    windows, where = cut_windows(image, SETTINGS)
    assert windows.dtype == np.uint8 and len(windows) > 1
    whole = np.asarray(image.resize((where.width, where.height), Image.Resampling.BICUBIC))
    for window, (top, left) in zip(windows, where.positions, strict=True):
        assert np.array_equal(window, whole[top : top + 32, left : left + 32])
    pixels = picture(20, 26)  # smaller than a window, which repeats the border
    (window,), where = cut_windows(Image.fromarray(pixels), changed(short_side=20, window=32))
    assert (where.height, where.width) == (20, 26)
    assert np.array_equal(window, pixels[np.minimum(np.arange(32), 19)][:, np.minimum(np.arange(32), 25)])


@pytest.mark.parametrize("height, width", [(19, 8), (13, 11), (5, 12)])
def test_stitch_averages_where_windows_overlap_and_resizes_the_average(height, width):
    where = WindowGrid(height, width, *(window_starts(side, 8, 4) for side in (height, width)))
    scores = torch.randn(len(where.positions), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(2, height + 8, width + 8), torch.zeros(height + 8, width + 8)
    for (top, left), window in zip(where.positions, scores, strict=True):
        total[:, top : top + 8, left : left + 8] += torch.tensor(np.stack([bilinear(channel, 8, 8) for channel in window.numpy()]))
        count[top : top + 8, left : left + 8] += 1
    expected = (total / count)[:, :height, :width]
    for size in [(height, width), (40, 33), (6, 5), (1, 1), (3, 30)]:
        stitched = stitch(scores, where, 8, size).rows()
        assert stitched.dtype == torch.float32
        np.testing.assert_allclose(stitched, F.interpolate(expected[None], size, mode="bilinear", align_corners=False)[0], atol=1e-5)


@pytest.mark.parametrize("entries", [1, 7 * 75 * 3, 1 << 24])  # a row at a time, seven, all
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_labels_made_a_few_rows_at_a_time_are_those_of_all_rows(monkeypatch, entries, threshold):
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", entries)
    where = window_grid(32, 75, SETTINGS)
    scores = torch.randn(len(where.positions), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    stitched = stitch(scores, where, 32, (50, 75))
    made = torch.full((3, 50, 75), math.nan)
    for rows, columns in stitched.parts():
        made[:, rows, columns] = stitched.rows(rows, columns)
    torch.testing.assert_close(made, stitched.rows())
    assert torch.equal(stitched.labels(3.0, threshold), to_labels(stitched.rows(), 3.0, threshold))


def test_labels_by_hand():
    assert to_labels(torch.tensor([[[0.1, 0.9, -1.0]], [[0.2, 0.3, -2.0]], [[0.0, 0.8, -0.5]]])).tolist() == [[1, 0, 2]]
    # at scale ln 9 the softmax of cosines 1 and 0 is 9/10 and 1/10, that of 1/2 and 0 is 3/4 and 1/4
    scores = torch.tensor([[[1.0, 0.0, 0.0, 0.5]], [[0.0, 0.0, 1.0, 0.0]]])
    for threshold, expected in [(0.8, [1, 0, 2, 0]), (0.7, [1, 0, 2, 1]), (0.95, [0, 0, 0, 0])]:
        assert to_labels(scores, math.log(9), threshold).tolist() == [expected]
    assert to_labels(torch.zeros(2, 1, 1), 20.0, 0.5).tolist() == [[1]]  # a score at the threshold is no background
    shares = torch.tensor([[[0.7, 0.4, 0.1]], [[0.2, 0.5, 0.3]]])  # without a scale, they are compared as they are
    assert to_labels(shares, None, 0.5).tolist() == [[1, 2, 0]] and to_labels(shares, None, 0.3, others=1).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_raw_labels_are_those_of_the_embeddings_in_blocks(threshold):
    """Two windows of 8 px with 4 x 4 embeddings, side by side without overlap: the label of each block of 2 x 2 px."""
    cosines = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scores = stitch(cosines, WindowGrid(8, 16, (0,), (0, 8)), 8, (8, 16))
    share = torch.softmax(cosines, 1).numpy()
    labels = share.argmax(1) if threshold is None else np.where(share.max(1) < threshold, 0, 1 + share.argmax(1))
    expected = np.kron(np.concatenate(labels, 1), np.ones((2, 2), int))
    assert np.array_equal(raw_labels(scores, 1.0, threshold), expected)
