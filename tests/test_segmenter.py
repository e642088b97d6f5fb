"""From an image to a label map: windows, stitching, units, background; the segmenter as users call it, and evaluation with it."""

import copy
import itertools
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image

from ovseg import params
from ovseg.benchmarks import datasets, evaluation
from ovseg.clip import dense, encoding, features
from ovseg.clip.frozen import FrozenCLIP
from ovseg.methods.decoder import Decoder
from ovseg.segmentation import units
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import WindowGrid, cut_windows, interpolation, stitch, to_labels, window_grid, window_starts
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

P = params.load(path=Path(__file__).parent.parent / "params.yaml")
TINY = P.pretrain.model_copy(
    update={"size": 32, "patch": 8, "embed_dim": 16, "vision_width": 64, "vision_layers": 2, "text_width": 64, "text_layers": 1}
)
SETTINGS = P.segment.model_copy(
    update={"unit": "pixel", "short_side": 32, "window": 32, "stride": 16, "batch": 4, "meta_points": 4, "precision": "float32"}
    | {"templates": ["a {}.", "many {}."]}
)
NAMES = ["cat", "sofa", "tall tree"]


def changed(**values):
    return SETTINGS.model_copy(update=values)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**pretraining.model_config(TINY))
    for parameter in model.parameters():  # the file that `save` writes is float16
        parameter.data = parameter.data.half().float()
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))


def reading(clip, way):
    """The same CLIP that reads dense features in another way."""
    other = copy.copy(clip)
    other.dense = way
    return other


@pytest.fixture(scope="module")
def decoder(clip):
    torch.manual_seed(1)
    decoder = Decoder(clip.width)
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.7)
    return decoder


@pytest.fixture(scope="module")
def tiny(clip, decoder):
    return Segmenter(clip, decoder, SETTINGS)


def picture(height, width, seed=0):
    """A smooth random picture, so that resizing it does not leave it grey."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def bilinear(array, height, width):
    """Bilinear interpolation of a (h, w) array between pixel centres, a pixel at a time."""
    h, w = array.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v, u = max(0, (y + 0.5) * h / height - 0.5), max(0, (x + 0.5) * w / width - 0.5)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            above = array[top, left] * (1 - u + left) + array[top, right] * (u - left)
            below = array[bottom, left] * (1 - u + left) + array[bottom, right] * (u - left)
            out[y, x] = above * (1 - v + top) + below * (v - top)
    return out


# ---- where windows lie


@pytest.mark.parametrize(
    "length, window, stride, starts",
    [
        (448, 448, 224, (0,)),
        (672, 448, 224, (0, 224)),
        (700, 448, 224, (0, 224, 252)),
        (449, 448, 224, (0, 1)),
        (100, 448, 224, (0,)),
        (10, 4, 4, (0, 4, 6)),
        (12, 4, 4, (0, 4, 8)),
        (5, 1, 1, (0, 1, 2, 3, 4)),
    ],
)
def test_window_starts_by_hand(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_windows_cover_every_pixel_and_stay_inside():
    for length in range(1, 30):
        for window in range(1, 12):
            for stride in range(1, window + 1):
                starts = window_starts(length, window, stride)
                covered = {pixel for start in starts for pixel in range(start, start + window)}
                assert covered >= set(range(length))
                assert list(starts) == sorted(set(starts)) and starts[0] == 0
                assert starts[-1] == max(0, length - window)
                assert all(later - start <= stride for start, later in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("height, width", [(33, 47), (47, 33), (101, 101), (32, 32), (1, 9), (9, 1), (1, 1), (500, 333), (31, 32)])
def test_layout_gives_the_shorter_side_its_length_and_keeps_the_shape(height, width):
    where = window_grid(height, width, SETTINGS)
    assert min(where.height, where.width) == 32
    assert max(where.height, where.width) == pytest.approx(32 * max(height, width) / min(height, width), abs=0.5)
    assert (where.height < where.width) == (height < width) or abs(height - width) == 1
    assert where.positions == [(top, left) for top in where.tops for left in where.lefts]


@pytest.mark.parametrize("height, width", [(32, 47), (47, 32), (32, 32), (81, 32)])
def test_windows_are_the_pixels_at_their_positions(height, width):
    pixels = picture(height, width)
    windows, where = cut_windows(Image.fromarray(pixels), SETTINGS)
    assert windows.shape == (len(where.positions), 32, 32, 3) and windows.dtype == np.uint8
    assert (where.height, where.width) == (height, width)
    for window, (top, left) in zip(windows, where.positions, strict=True):
        assert np.array_equal(window, pixels[top : top + 32, left : left + 32])


def test_a_window_larger_than_the_image_repeats_its_border():
    settings = changed(short_side=20, window=32)
    pixels = picture(20, 26)
    (window,), where = cut_windows(Image.fromarray(pixels), settings)
    assert (where.height, where.width) == (20, 26)
    for y in range(32):
        for x in range(32):
            assert np.array_equal(window[y, x], pixels[min(y, 19), min(x, 25)])


@pytest.mark.parametrize("height, width", [(33, 47), (71, 45), (5, 3)])
def test_an_image_is_resized_before_it_is_cut(height, width):
    image = Image.fromarray(picture(height, width))
    windows, where = cut_windows(image, SETTINGS)
    resized = np.asarray(image.resize((where.width, where.height), Image.Resampling.BICUBIC))
    for window, (top, left) in zip(windows, where.positions, strict=True):
        assert np.array_equal(window, resized[top : top + 32, left : left + 32])


# ---- stitching


def averaged(scores, where, window):
    """What stitch computes at the layout's own size, a pixel at a time."""
    classes = scores.shape[1]
    out = np.zeros((classes, where.height, where.width))
    upsampled = [[bilinear(channel, window, window) for channel in score] for score in scores.numpy()]
    for c in range(classes):
        for y in range(where.height):
            for x in range(where.width):
                found = [
                    upsampled[n][c][y - top, x - left]
                    for n, (top, left) in enumerate(where.positions)
                    if top <= y < top + window and left <= x < left + window
                ]
                out[c, y, x] = sum(found) / len(found)
    return out


@pytest.mark.parametrize("height, width", [(8, 8), (8, 15), (19, 8), (13, 11), (5, 7), (5, 12)])
def test_stitch_averages_where_windows_overlap(height, width):
    starts = (window_starts(side, 8, 4) for side in (height, width))
    where = WindowGrid(height, width, *starts)
    scores = torch.randn(len(where.positions), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    stitched = stitch(scores, where, 8, (height, width)).rows()
    assert stitched.shape == (2, height, width)
    np.testing.assert_allclose(stitched.numpy(), averaged(scores, where, 8), atol=1e-5)


@pytest.mark.parametrize("height, width", [(13, 11), (8, 15), (5, 7), (5, 12)])
@pytest.mark.parametrize("size", [(40, 33), (26, 22), (6, 5), (1, 1), (3, 30), (30, 3)])
def test_stitch_resizes_what_it_averaged(height, width, size):
    where = WindowGrid(height, width, *(window_starts(side, 8, 4) for side in (height, width)))
    scores = torch.randn(len(where.positions), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    stitched = stitch(scores, where, 8, size).rows()
    expected = F.interpolate(torch.from_numpy(averaged(scores, where, 8))[None], size, mode="bilinear", align_corners=False)[0]
    assert stitched.shape == (2, *size) and stitched.dtype == torch.float32
    np.testing.assert_allclose(stitched.numpy(), expected.numpy(), atol=1e-5)


def test_interpolation_by_hand():
    # two windows of two pixels on three: the one in the middle is in both
    assert interpolation(3, (0, 1), 2, 2, 3).tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    # resized to one pixel, whose centre is the middle one's
    assert interpolation(3, (0, 1), 2, 2, 1).tolist() == [[0, 0.5, 0.5, 0]]
    # a window of four pixels out of two, of which the picture has three: the last is three quarters of the second
    assert interpolation(3, (0,), 4, 2, 3).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("size", [None, (50, 20), (2, 9)])
@pytest.mark.parametrize("height, width", [(8, 8), (30, 17), (3, 5), (8, 100)])
def test_constant_scores_stay_constant(height, width, size):
    where = WindowGrid(height, width, *(window_starts(side, 8, 3) for side in (height, width)))
    constants = torch.tensor([0.25, -1.5, 3.0])
    size = size or (height, width)
    stitched = stitch(constants.view(1, 3, 1, 1).expand(len(where.positions), 3, 4, 4), where, 8, size).rows()
    torch.testing.assert_close(stitched, constants.view(3, 1, 1).expand(3, *size))


def test_stitched_windows_are_the_image_they_were_cut_from():
    pixels = picture(32, 75)
    windows, where = cut_windows(Image.fromarray(pixels), SETTINGS)
    stitched = stitch(torch.from_numpy(windows).permute(0, 3, 1, 2).float(), where, 32, (32, 75)).rows()
    np.testing.assert_allclose(stitched.permute(1, 2, 0).numpy(), pixels, atol=1e-3)


@pytest.mark.parametrize("entries", [1, 7 * 75 * 3, 1 << 24])  # a row at a time, seven, all
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_labels_made_a_few_rows_at_a_time_are_those_of_all_rows(monkeypatch, entries, threshold):
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", entries)
    where = window_grid(32, 75, SETTINGS)
    scores = torch.randn(len(where.positions), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = stitch(scores, where, 32, (50, 75))
    torch.testing.assert_close(torch.cat([found.rows(slice(y, y + 1)) for y in range(50)], 1), found.rows())
    assert torch.equal(found.labels(3.0, threshold), to_labels(found.rows(), 3.0, threshold))


# ---- labels


def test_labels_without_a_background_are_the_best_class():
    scores = torch.tensor([[[0.1, 0.9, -1.0]], [[0.2, 0.3, -2.0]], [[0.0, 0.8, -0.5]]])
    assert to_labels(scores).tolist() == [[1, 0, 2]]


def test_labels_with_a_background_by_hand():
    # at scale ln 9 the softmax of cosines 1 and 0 is 9/10 and 1/10, that of 1/2 and 0 is 3/4 and 1/4
    scores = torch.tensor([[[1.0, 0.0, 0.0, 0.5]], [[0.0, 0.0, 1.0, 0.0]]])
    assert to_labels(scores, math.log(9), 0.8).tolist() == [[1, 0, 2, 0]]
    assert to_labels(scores, math.log(9), 0.7).tolist() == [[1, 0, 2, 1]]
    assert to_labels(scores, math.log(9), 0.95).tolist() == [[0, 0, 0, 0]]


def test_a_score_at_the_threshold_is_no_background():
    assert to_labels(torch.zeros(2, 1, 1), 20.0, 0.5).tolist() == [[1]]


# ---- the segmenter


@pytest.mark.parametrize("unit", ["pixel", "meta-point", "group"])
@pytest.mark.parametrize("way", ["clip", "maskclip"])
def test_one_window_is_no_window(clip, decoder, unit, way):
    pixels = picture(32, 32)
    with torch.no_grad():
        embeddings = decoder(clip.encode_dense(pixels[None], way))
        embeddings = units.form(embeddings, unit, 4, SETTINGS.groups)[0][0].double().numpy()  # d, 8, 8
    expected = []
    for name in NAMES:
        prompts = clip.encode_text([template.format(name) for template in SETTINGS.templates]).double().numpy()
        text = sum(prompt / np.linalg.norm(prompt) for prompt in prompts)
        cosine = np.einsum("dhw,d->hw", embeddings, text) / np.linalg.norm(embeddings, axis=0) / np.linalg.norm(text)
        expected.append(bilinear(cosine, 32, 32))
    result = Segmenter(reading(clip, way), decoder, changed(unit=unit)).segment(pixels, NAMES)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    best, second = np.sort(expected, axis=0)[-1], np.sort(expected, axis=0)[-2]
    clear = best - second > 1e-3
    assert clear.mean() > 0.5
    assert np.array_equal(result.labels[clear], np.argmax(expected, 0)[clear])


def test_windows_in_one_batch_or_one_at_a_time_are_the_same(clip, decoder):
    image = picture(50, 90)
    one, four = (Segmenter(clip, decoder, changed(batch=batch)).segment(image, NAMES) for batch in (1, 4))
    np.testing.assert_allclose(one.scores, four.scores, atol=1e-5)


def random_features(clip, windows=10, seed=0):
    return torch.randn(windows, clip.width, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 4, 10, 32])
def test_embeddings_are_the_decoders_in_batches(clip, decoder, batch, monkeypatch):
    features = random_features(clip)
    with torch.no_grad():
        expected = torch.cat([decoder(window[None]) for window in features])
    sizes, real = [], decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda x: sizes.append(len(x)) or real(x))
    embeddings = Segmenter(clip, decoder, changed(batch=batch)).embed(features)
    assert sizes == [len(part) for part in features.split(batch)]
    assert embeddings.shape == (10, clip.width, 8, 8) and not embeddings.requires_grad
    torch.testing.assert_close(embeddings, expected)


def test_embeddings_in_bfloat16_are_rounded_ones_of_float32(clip, decoder):
    features = random_features(clip)
    exact, rounded = (Segmenter(clip, decoder, changed(precision=precision)).embed(features) for precision in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 2**-7 * exact.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("unit", ["pixel", "meta-point", "group"])
def test_scores_are_cosines_of_units_stitched(clip, decoder, unit):
    where = window_grid(40, 70, SETTINGS)
    embeddings = random_features(clip, len(where.positions))
    classes = F.normalize(torch.randn(3, clip.width, generator=torch.Generator().manual_seed(1)), dim=1)
    recognised = [units.form(window[None], unit, 4, SETTINGS.groups)[0][0] for window in embeddings]
    cosines = torch.stack([torch.stack([F.cosine_similarity(window, c[:, None, None], dim=0) for c in classes]) for window in recognised])
    expected = F.interpolate(torch.from_numpy(averaged(cosines, where, 32))[None], (40, 70), mode="bilinear", align_corners=False)[0]
    segmenter = Segmenter(clip, decoder, changed(unit=unit))
    torch.testing.assert_close(segmenter.classify(embeddings, classes), cosines, rtol=1e-4, atol=1e-5)
    scores = segmenter.score(embeddings, where, classes, (40, 70)).rows()
    np.testing.assert_allclose(scores.numpy(), expected.numpy(), atol=1e-5)


def test_another_unit_is_another_segmenter_of_the_same_clip_and_decoder(clip, decoder):
    clip = reading(clip, "clip")
    one = Segmenter(clip, decoder, changed(unit="group"))
    pixel, four, nine = one.with_unit("pixel"), one.with_unit("meta-point"), one.with_unit("meta-point", 9)
    assert [s.settings for s in (pixel, four, nine)] == [
        changed(unit="pixel"),
        changed(unit="meta-point", meta_points=4),
        changed(unit="meta-point", meta_points=9),
    ]
    assert all(s.clip is clip and s.decoder is decoder for s in (pixel, four, nine))
    assert one.settings == changed(unit="group")
    image = picture(40, 50)
    scores = [s.segment(image, NAMES).scores for s in (one, pixel, four, nine)]
    for found, settings in zip(scores, (one.settings, pixel.settings, four.settings, nine.settings), strict=True):
        assert np.array_equal(found, Segmenter(clip, decoder, settings).segment(image, NAMES).scores)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.combinations(scores, 2))


@pytest.mark.parametrize("height, width", [(32, 32), (33, 47), (61, 35), (1, 1), (1, 7), (6, 1), (20, 100), (2, 3)])
@pytest.mark.parametrize("background", [False, True])
def test_a_segmentation_has_the_images_size(tiny, height, width, background):
    result = tiny.segment(Image.fromarray(picture(height, width)), NAMES, background)
    assert result.labels.shape == (height, width) and result.labels.dtype == np.int64
    assert result.scores.shape == (len(NAMES), height, width) and result.scores.dtype == np.float32
    assert np.abs(result.scores).max() <= 1 + 1e-5
    assert result.names == (("background", *NAMES) if background else tuple(NAMES))
    assert 0 <= result.labels.min() and result.labels.max() < len(result.names)


def test_an_array_is_segmented_as_its_image(tiny):
    pixels = picture(33, 40)
    from_array, from_image = tiny.segment(pixels, NAMES), tiny.segment(Image.fromarray(pixels), NAMES)
    assert np.array_equal(from_array.scores, from_image.scores) and np.array_equal(from_array.labels, from_image.labels)


def test_grey_images_are_segmented_as_their_colour_version(tiny):
    grey = picture(33, 40)[..., 0]
    expected = tiny.segment(np.stack([grey] * 3, -1), NAMES).scores
    for image in (grey, Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        assert np.array_equal(tiny.segment(image, NAMES).scores, expected)


@pytest.mark.parametrize("mode", ["RGBA", "RGBX"])
def test_opaque_images_are_segmented_as_their_colours(tiny, mode):
    image = Image.fromarray(picture(33, 40))
    assert np.array_equal(tiny.segment(image.convert(mode), NAMES).scores, tiny.segment(image, NAMES).scores)


@pytest.mark.parametrize("mode", ["CMYK", "P", "1", "YCbCr", "HSV", "LAB", "F", "I"])
def test_images_of_any_mode_are_segmented(tiny, mode):
    image = Image.fromarray(picture(33, 40))
    image = image.convert("L").convert(mode) if mode in ("F", "I") else image.convert("RGB").convert(mode) if mode != "LAB" else image
    assert tiny.segment(image, NAMES).labels.shape == (33, 40)


def test_a_16_bit_image_keeps_its_greys(tiny):

    grey = picture(33, 40)[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_allclose(tiny.segment(deep, NAMES).scores, tiny.segment(grey, NAMES).scores, atol=1e-3)


def test_the_order_of_names_permutes_labels_only(tiny):
    image = picture(40, 33)
    given, back = tiny.segment(image, NAMES), tiny.segment(image, NAMES[::-1])
    np.testing.assert_allclose(back.scores[::-1], given.scores, atol=1e-5)
    clear = np.diff(np.sort(given.scores, axis=0), axis=0)[-1] > 1e-4
    assert np.array_equal((len(NAMES) - 1 - back.labels)[clear], given.labels[clear])


def test_the_threshold_moves_pixels_to_the_background(tiny):
    image = picture(40, 33)
    labels = [tiny.segment(image, NAMES, background=True, threshold=threshold).labels for threshold in (0.0, 0.4, 1.0)]
    assert (labels[0] > 0).all() and (labels[2] == 0).all()
    assert np.array_equal(labels[0] - 1, tiny.segment(image, NAMES).labels)
    assert np.array_equal(labels[1][labels[1] > 0], labels[0][labels[1] > 0])


def test_the_threshold_is_by_default_that_of_the_settings(clip, decoder):
    image = picture(40, 33)
    own = Segmenter(clip, decoder, changed(threshold=0.37)).segment(image, NAMES, background=True)
    asked = Segmenter(clip, decoder, changed(threshold=0.9)).segment(image, NAMES, background=True, threshold=0.37)
    assert np.array_equal(own.labels, asked.labels)
    assert 0 < (own.labels == 0).mean() < 1


def test_names_count_from_one_behind_a_background(tiny):
    assert tiny.segment(picture(32, 32), ("cat", "dog"), background=True).names == ("background", "cat", "dog")


def test_names_may_come_from_a_generator(tiny):
    assert tiny.segment(picture(32, 32), (name for name in NAMES)).names == tuple(NAMES)


@pytest.mark.parametrize(
    "names, background, message",
    [
        ([], False, "at least two classes"),
        (["cat"], True, "at least two classes"),
        (["cat"], False, "at least two classes"),
        ("cat", False, "at least two classes"),
        (["cat", "dog", "cat"], False, "each class once"),
        (["cat", ""], False, "non-empty"),
        (["cat", "  "], True, "non-empty"),
        (["cat", 3], False, "non-empty strings"),
        (["cat", None], False, "non-empty strings"),
        (["background", "cat"], True, "background"),
    ],
)
def test_bad_names_are_errors(tiny, names, background, message):
    with pytest.raises(ValueError, match=message):
        tiny.segment(picture(32, 32), names, background)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 3), np.int64),
        np.zeros((5, 5), bool),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        torch.zeros(5, 5, 3, dtype=torch.uint8),
        "cat.jpg",
        None,
        [[0, 1], [2, 3]],
    ],
    ids=["float", "int64", "bool", "4 channels", "4 axes", "1 axis", "tensor", "path", "None", "list"],
)
def test_what_is_no_image_is_an_error(tiny, image):
    with pytest.raises(TypeError, match="image"):
        tiny.segment(image, NAMES)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0), (0, 5)])
def test_an_empty_array_is_an_error(tiny, shape):
    with pytest.raises(ValueError, match="empty"):
        tiny.segment(np.zeros(shape, np.uint8), NAMES)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_image_is_an_error(tiny, size):

    with pytest.raises(ValueError, match="empty"):
        tiny.segment(Image.new("RGB", size), NAMES)


def test_a_window_must_be_whole_patches(clip, decoder):
    with pytest.raises(ValueError, match="segment.window = 30.*multiples of.*8"):
        Segmenter(clip, decoder, changed(window=30))


def test_the_segmenter_is_importable_from_the_package():
    from ovseg import Segmenter as public

    assert public is Segmenter


# ---- saving and loading


@pytest.fixture
def saved(clip, decoder, tmp_path, monkeypatch):
    """A segmenter saved in a project's models/mgca, its CLIP in models/clip; returns the project."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    pretraining.save(clip.clip, TINY, "models/clip")
    decoder.save("models/mgca")
    own = {"model": "local-dir:models/clip", "pretrained": None, "precision": "float32", "dense": "clip"}
    clip_settings = P.clip.model_copy(update=own)
    Segmenter(reading(clip, "clip"), decoder, changed(unit="meta-point")).save_settings("models/mgca", clip_settings)
    return project


@pytest.mark.parametrize("moved", [False, True])
def test_a_saved_segmenter_gives_the_same_labels_elsewhere(saved, clip, decoder, tmp_path, monkeypatch, moved):
    expected = Segmenter(reading(clip, "clip"), decoder, changed(unit="meta-point")).segment(picture(33, 50), NAMES)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if moved:  # the models folder, as a whole
        shutil.move(saved / "models", tmp_path / "elsewhere" / "models")
    folder = "models/mgca" if moved else saved / "models" / "mgca"
    loaded = Segmenter.load(folder, device="cpu")
    assert loaded.clip.dense == "clip" and loaded.settings == changed(unit="meta-point")
    result = loaded.segment(picture(33, 50), NAMES)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
    assert (result.labels == expected.labels).mean() > 0.99


def test_a_folder_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="segmenter.json"):
        Segmenter.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        Segmenter.load(tmp_path / "absent")


@pytest.mark.parametrize("gone", ["models/clip", "models/mgca/decoder.safetensors"])
def test_a_model_that_lost_a_part_is_a_clear_error(saved, gone):
    shutil.rmtree(saved / gone) if (saved / gone).is_dir() else (saved / gone).unlink()
    with pytest.raises(FileNotFoundError, match=Path(gone).name):
        Segmenter.load(saved / "models" / "mgca", device="cpu")


def test_settings_name_the_clip_relative_to_the_model(saved):
    written = json.loads((saved / "models" / "mgca" / "segmenter.json").read_text())
    assert written["clip"]["model"] == "local-dir:../clip"
    assert written["clip"]["dense"] == "clip" and written.keys() == {"clip", "segment"}  # the way is CLIP's, once


# ---- cached features


@pytest.fixture
def benchmark(tmp_path):
    """A folder benchmark of three pictures of different sizes: 1, 3 and 6 windows or so."""
    folder = tmp_path / "benchmark"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\ncat\nsofa\n")
    for index, (height, width) in enumerate([(32, 32), (40, 70), (130, 41)]):
        Image.fromarray(picture(height, width, index)).save(folder / "images" / f"{index}.png")
        labels = np.random.default_rng(index).integers(0, 3, (height, width), dtype=np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    return datasets.FolderBenchmark("mine", folder)


@pytest.mark.parametrize("way", dense.DENSE_MODES)
def test_cached_features_score_as_direct_encoding(clip, decoder, benchmark, tmp_path, way):
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", dense.DENSE_MODES, {})
    one = Segmenter(reading(clip, way), decoder, SETTINGS)  # single pixels: float16 may move one from a meta-point to the next
    cached = evaluation.Encoded.open(benchmark, tmp_path / "cache", way)
    assert cached.windows.dtype == np.float16
    direct = evaluation.Encoded(benchmark, cached.classes, None)
    pictures = list(zip(cached.pictures([one]), direct.pictures([one]), benchmark, strict=True))
    assert len(pictures) == 3
    for (key, _, labels, [scores]), (_, _, _, [again]), (expected_key, image, expected_labels) in pictures:
        assert key == expected_key and np.array_equal(labels, expected_labels)
        np.testing.assert_allclose(scores.rows(), again.rows(), atol=5e-3)
        np.testing.assert_allclose(again.rows(), one.segment(image, ["cat", "sofa"]).scores, atol=1e-5)


def test_a_segmenter_without_clip_evaluates_cached_features(clip, decoder, benchmark, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", ["maskclip"], {})
    encoded = evaluation.Encoded.open(benchmark, tmp_path / "cache", "maskclip")
    with_clip, without = (evaluation.evaluate({"one": Segmenter(c, decoder, SETTINGS)}, encoded, 0.4)["one"] for c in (clip, None))
    assert with_clip == without and without["pictures"] == 3


@pytest.fixture
def several(clip, decoder):
    """Segmenters of two decoders, in turn, and three units."""
    torch.manual_seed(2)
    other = Decoder(clip.width)
    for block in other.blocks:
        torch.nn.init.constant_(block.gate, -0.9)
    first, second = Segmenter(clip, decoder, SETTINGS), Segmenter(clip, other, SETTINGS)
    return [first, second.with_unit("group"), first.with_unit("meta-point"), second, first.with_unit("meta-point", 9)]


@pytest.fixture(params=["cached", "direct"])
def encoded(request, clip, benchmark, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", ["maskclip"] if request.param == "cached" else [], {})
    return evaluation.Encoded.open(benchmark, tmp_path / "cache", "maskclip")


def test_several_segmenters_score_each_as_alone(several, encoded):
    together = list(encoded.pictures(several))
    alone = [list(encoded.pictures([segmenter])) for segmenter in several]
    assert len(together) == 3
    for (key, image, labels, scores), *ones in zip(together, *alone, strict=True):
        assert len(scores) == len(several)
        for found, (own_key, own_image, own_labels, (expected,)) in zip(scores, ones, strict=True):
            assert key == own_key and image == own_image and np.array_equal(labels, own_labels)
            torch.testing.assert_close(found.rows(), expected.rows())
        assert all((a.rows() - b.rows()).abs().max() > 1e-3 for a, b in itertools.combinations(scores, 2))  # none stands in for another


def test_several_segmenters_evaluate_each_as_alone(several, encoded):
    named = dict(zip("abcde", several, strict=True))
    together = evaluation.evaluate(named, encoded, 0.4)
    assert together == {name: evaluation.evaluate({name: one}, encoded, 0.4)[name] for name, one in named.items()}
    assert len({result["miou"] for result in together.values()}) == len(several)


def test_several_segmenters_run_clip_and_each_decoder_once_a_picture(several, benchmark, clip, monkeypatch):
    calls = []
    for what, module, method in [
        ("clip", clip, "encode_dense"),
        ("one", several[0].decoder, "forward"),
        ("two", several[1].decoder, "forward"),
    ]:
        real = getattr(module, method)
        monkeypatch.setattr(module, method, lambda x, *rest, what=what, real=real: calls.extend([what] * len(x)) or real(x, *rest))
    windows = sum(len(cut_windows(image, SETTINGS)[0]) for _, image, _ in benchmark)
    classes = clip.embed_classes(["cat", "sofa"], SETTINGS.templates)
    assert len(list(evaluation.Encoded(benchmark, classes, None).pictures(several))) == 3
    assert {what: calls.count(what) for what in calls} == {"clip": windows, "one": windows, "two": windows}


def test_examples_show_each_segmenters_labels(several, encoded):
    rows = evaluation.examples(several, encoded, 0.4, [2, 0])
    pictures = list(encoded.pictures(several))
    assert len(rows) == 2
    for (image, truth, *maps), index in zip(rows, (0, 2), strict=True):
        _, expected_image, labels, scores = pictures[index]
        assert image == expected_image and np.array_equal(truth, labels) and len(maps) == len(several)
        for found, score in zip(maps, scores, strict=True):
            assert np.array_equal(found, to_labels(score.rows(), SETTINGS.scale, 0.4))


# ---- benchmarks that share their pictures


@pytest.fixture
def sharing(tmp_path):
    """Three benchmarks in shards: two over the same pictures with other classes, and one over others in between."""
    for name, seeds in (("same", (0, 1)), ("other", (2, 3))):
        with wds.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for seed in seeds:
                labels = np.random.default_rng(seed).integers(0, 2, (40, 50 + seed), dtype=np.uint8)
                tar.write({"__key__": f"p{seed}", "png": picture(40, 50 + seed, seed), "few.png": labels, "many.png": labels + 1})
    (tmp_path / "few.txt").write_text("background\ncat\n")
    (tmp_path / "many.txt").write_text("cat\nsofa\ntall tree\n")
    return [
        datasets.ShardBenchmark("few", str(tmp_path / "same.tar"), "few.png", tmp_path / "few.txt"),
        datasets.ShardBenchmark("apart", str(tmp_path / "other.tar"), "few.png", tmp_path / "few.txt"),
        datasets.ShardBenchmark("many", str(tmp_path / "same.tar"), "many.png", tmp_path / "many.txt"),
    ]


ARRAYS = ("classes.npy", "clip.npy", "maskclip.npy", "sclip.npy", "clearclip.npy")


def check_encoded_as_alone(clip, suite, together, alone):
    for benchmark in suite:
        benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, alone / benchmark.name, dense.DENSE_MODES, {})
        for name in ARRAYS:
            expected = np.load(alone / benchmark.name / benchmark.name / name)
            assert expected.std() > 0 and np.array_equal(np.load(together / benchmark.name / name), expected)


def test_benchmarks_over_the_same_pictures_share_their_features(clip, sharing, tmp_path):
    few, apart, many = (tmp_path / "cache" / benchmark.name for benchmark in sharing)
    benchmark_encoding.encode_benchmarks(clip, sharing, SETTINGS, tmp_path / "cache", dense.DENSE_MODES, {})
    for name in ARRAYS[1:]:
        assert os.path.samefile(few / name, many / name) and not os.path.samefile(few / name, apart / name)
    assert {path.name for folder in (few, apart, many) for path in folder.iterdir()} == set(ARRAYS)
    assert len({(many / name).read_bytes() for name in ARRAYS}) == len(ARRAYS)  # no way stands in for another
    check_encoded_as_alone(clip, sharing, tmp_path / "cache", tmp_path / "alone")
    scores = [
        list(evaluation.Encoded.open(benchmark, tmp_path / "cache", "clip").pictures([Segmenter(None, Decoder(clip.width), SETTINGS)]))
        for benchmark in sharing
    ]
    assert [[tuple(score.rows().shape) for *_, (score,) in found] for found in scores] == [
        [(1, 40, 50), (1, 40, 51)],
        [(1, 40, 52), (1, 40, 53)],
        [(3, 40, 50), (3, 40, 51)],
    ]
    for (*_, (cat,)), (*_, (cat_and_others,)) in zip(scores[0], scores[2], strict=True):
        torch.testing.assert_close(cat.rows(), cat_and_others.rows()[:1])


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["same order", "reversed"])
def test_benchmarks_are_encoded_anew_over_an_earlier_run(clip, sharing, tmp_path, order):
    torch.manual_seed(5)
    earlier = FrozenCLIP(open_clip.model.CLIP(**pretraining.model_config(TINY)), clip.tokenizer)
    benchmark_encoding.encode_benchmarks(earlier, sharing, SETTINGS, tmp_path / "cache", dense.DENSE_MODES, {})
    before = np.load(tmp_path / "cache" / "many" / "clip.npy")
    benchmark_encoding.encode_benchmarks(clip, sharing[order], SETTINGS, tmp_path / "cache", dense.DENSE_MODES, {})
    assert not np.array_equal(np.load(tmp_path / "cache" / "many" / "clip.npy"), before)
    check_encoded_as_alone(clip, sharing, tmp_path / "cache", tmp_path / "alone")


def test_pictures_are_told_apart_by_where_they_are(sharing, benchmark):
    few, apart, many = sharing
    assert few.source == many.source != apart.source
    again = datasets.FolderBenchmark("again", str(benchmark.folder) + "/")
    assert again.source == benchmark.source and benchmark.source not in (few.source, apart.source)


def test_only_the_ways_asked_for_are_cached(clip, sharing, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, sharing, SETTINGS, tmp_path / "cache", ("clearclip",), {})
    for benchmark in sharing:
        assert {path.name for path in (tmp_path / "cache" / benchmark.name).iterdir()} == {"classes.npy", "clearclip.npy"}


def test_text_alone_may_be_cached(clip, benchmark, sharing, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, [benchmark, *sharing], SETTINGS, tmp_path / "cache", (), {})
    assert {path.name for path in (tmp_path / "cache").glob("*/*")} == {"classes.npy"}
    assert {path.parent.name for path in (tmp_path / "cache").glob("*/*")} == {"mine", "few", "apart", "many"}
    encoded = evaluation.Encoded.open(benchmark, tmp_path / "cache", "maskclip")
    assert encoded.windows is None
    torch.testing.assert_close(encoded.classes, clip.embed_classes(["cat", "sofa"], SETTINGS.templates))
    assert features.open_cached(tmp_path / "cache" / "mine" / "clip.npy") is None


def test_the_first_window_is_that_of_the_first_picture(clip, decoder, benchmark, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", ["maskclip"], {})
    one = Segmenter(clip, decoder, SETTINGS)
    window, embeddings = evaluation.first_window(one, evaluation.Encoded.open(benchmark, tmp_path / "cache", "maskclip"))
    assert np.array_equal(window, picture(32, 32, 0))
    with torch.no_grad():
        np.testing.assert_allclose(embeddings, decoder(clip.encode_dense(window[None])), rtol=1e-2, atol=1e-2)


# ---- the suite that `encode` found


@pytest.fixture
def suite(clip, benchmark, tmp_path):
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", ["maskclip"], {})
    return {"mine": params.Benchmark(folder=str(benchmark.folder)), "later": params.Benchmark(folder=str(tmp_path), optional=True)}


def test_the_suite_is_what_encode_found(suite, tmp_path):
    (found,) = evaluation.open_suite(suite, tmp_path / "cache", "maskclip", {})
    assert found.benchmark.name == "mine" and found.windows is not None  # the other, optional, was not there then


def test_a_benchmark_that_changed_since_encode_is_named(suite, benchmark, tmp_path):
    Image.new("L", (32, 32)).save(benchmark.folder / "labels/0.png")
    with pytest.raises(ValueError, match="benchmark mine has changed since `encode`"):
        evaluation.open_suite(suite, tmp_path / "cache", "maskclip", {})


def test_a_benchmark_that_went_since_encode_is_an_error_even_if_optional(suite, benchmark, tmp_path):
    shutil.rmtree(benchmark.folder)
    with pytest.raises(FileNotFoundError, match="benchmark mine"):
        evaluation.open_suite({"mine": suite["mine"].model_copy(update={"optional": True})}, tmp_path / "cache", "maskclip", {})


def test_other_values_than_encode_ran_with_are_named(clip, benchmark, suite, tmp_path):
    with_these = features.made_with(P.clip, SETTINGS)
    benchmark_encoding.encode_benchmarks(clip, [benchmark], SETTINGS, tmp_path / "cache", ["maskclip"], with_these)
    assert len(evaluation.open_suite(suite, tmp_path / "cache", "maskclip", with_these)) == 1
    for other in (features.made_with(P.clip, changed(templates=["zzz {}"])), features.made_with(P.clip, changed(unit="group", stride=8))):
        (key,) = (key for key in other if other[key] != with_these[key])
        with pytest.raises(ValueError, match=f"{key} = .*`encode` ran with"):
            evaluation.open_suite(suite, tmp_path / "cache", "maskclip", other)


def test_a_suite_of_other_parameters_or_none_is_an_error(suite, tmp_path):
    with pytest.raises(ValueError, match="benchmark mine is in .*suite.json, not among the benchmarks"):
        evaluation.open_suite({"later": suite["later"]}, tmp_path / "cache", "maskclip", {})
    with pytest.raises(FileNotFoundError, match="suite.json does not exist"):
        evaluation.open_suite(suite, tmp_path / "nothing", "maskclip", {})


@pytest.mark.parametrize("wanted, shown", [([0, 2], 2), ([1, 7], 1), ([8, 9], 1)])
def test_examples_beyond_the_last_picture_are_left_out(several, encoded, wanted, shown):
    assert len(evaluation.examples(several[:1], encoded, 0.4, wanted)) == shown


def test_a_model_saved_before_it_said_how_features_are_read_is_maskclips(saved):
    settings = saved / "models/mgca/segmenter.json"
    config = json.loads(settings.read_text())
    del config["clip"]["dense"]
    settings.write_text(json.dumps(config))
    assert Segmenter.load(saved / "models/mgca", device="cpu").clip.dense == "maskclip"
