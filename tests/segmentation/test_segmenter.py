"""The segmenter as users call it: from an image and names to labels."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import bilinear, changed, picture, reading

from ovseg import Segmenter
from ovseg.segmentation import units
from ovseg.segmentation.names import OTHERS, besides, check_names

NAMES = ["cat", "sofa", "tall tree"]


@pytest.fixture(scope="module")
def tiny(clip, decoder):
    return Segmenter(clip, decoder, changed())


@pytest.mark.parametrize("unit", ["pixel", "meta-point", "group"])
@pytest.mark.parametrize("mode", ["clip", "maskclip"])
def test_one_window_is_scored_by_cosines_of_its_units(clip, decoder, unit, mode):
    pixels = picture(32, 32)
    with torch.no_grad():
        embeddings = decoder(clip.encode_dense(pixels[None], mode))
        embeddings = units.form(embeddings, unit, 4, changed().groups)[0][0].double().numpy()  # d, 8, 8
    expected = []
    for name in NAMES:
        prompts = clip.encode_text([template.format(name) for template in changed().templates]).double().numpy()
        text = sum(prompt / np.linalg.norm(prompt) for prompt in prompts)
        cosine = np.einsum("dhw,d->hw", embeddings, text) / np.linalg.norm(embeddings, axis=0) / np.linalg.norm(text)
        expected.append(bilinear(cosine, 32, 32))
    result = Segmenter(reading(clip, mode), decoder, changed(unit="group")).with_unit(unit).segment(pixels, NAMES)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    _, second, best = np.sort(expected, axis=0)
    clear = best - second > 1e-3
    assert clear.mean() > 0.5 and np.array_equal(result.labels[clear], np.argmax(expected, 0)[clear])


def test_windows_are_encoded_and_decoded_in_batches_whose_size_changes_nothing(clip, decoder, monkeypatch):
    image, encoded, decoded = picture(50, 90), [], []
    expected = Segmenter(clip, decoder, changed(batch=100)).segment(image, NAMES).scores
    for sizes, module, method in [(encoded, clip, "encode_dense"), (decoded, decoder, "forward")]:
        real = getattr(module, method)
        monkeypatch.setattr(module, method, lambda x, sizes=sizes, real=real: sizes.append(len(x)) or real(x))
    np.testing.assert_allclose(Segmenter(clip, decoder, changed(batch=2)).segment(image, NAMES).scores, expected, atol=1e-5)
    assert encoded == decoded == [2, 1]


def test_embeddings_in_bfloat16_are_those_of_float32_rounded(clip, decoder):
    features = torch.randn(10, clip.width, 4, 4, generator=torch.Generator().manual_seed(0))
    exact, rounded = (Segmenter(clip, decoder, changed(precision=precision)).embed(features) for precision in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32 and not rounded.requires_grad
    assert 0 < (rounded - exact).norm() < 2**-7 * exact.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("height, width, background", [(33, 47, False), (1, 1, True), (6, 1, False), (5, 2000, True)])
def test_a_segmentation_has_the_size_of_the_image(tiny, height, width, background):
    result = tiny.segment(Image.fromarray(picture(height, width)), NAMES, background)
    assert result.labels.shape == (height, width) and result.labels.dtype == np.int64
    assert result.scores.shape == (len(NAMES), height, width) and result.scores.dtype == np.float32
    assert np.abs(result.scores).max() <= 1 + 1e-5 and result.others == ()
    assert result.names == (("background", *NAMES) if background else tuple(NAMES))
    assert 0 <= result.labels.min() and result.labels.max() < len(result.names)
    assert all(entries.numel() < 1e6 for entries in (result.grid.down, result.grid.across))  # little memory even for a line of pixels


def test_the_threshold_moves_pixels_to_the_background_and_is_by_default_that_of_the_settings(tiny, clip, decoder):
    image = picture(40, 33)
    none, some, all_ = (tiny.segment(image, NAMES, background=True, threshold=threshold).labels for threshold in (0.0, 0.37, 1.0))
    assert np.array_equal(none - 1, tiny.segment(image, NAMES).labels) and (all_ == 0).all()
    assert 0 < (some == 0).mean() < 1 and np.array_equal(some[some > 0], none[some > 0])
    assert np.array_equal(Segmenter(clip, decoder, changed(threshold=0.37)).segment(image, NAMES, background=True).labels, some)


def test_others_are_background_and_compete_with_the_classes(tiny):
    image, all_names = picture(40, 33), [*NAMES, "sky"]
    plain = tiny.segment(image, all_names)
    for others, classes in ((["sky"], NAMES), (["sky", "tall tree"], NAMES[:2]), (["sky", "tall tree", "sofa"], NAMES[:1])):
        expected = [0 if name in others else 1 + classes.index(name) for name in all_names]
        result = tiny.segment(image, classes, others=others)
        assert result.names == ("background", *classes) and result.others == tuple(others) and result.threshold is None
        assert np.array_equal(result.labels, np.array(expected)[plain.labels]) and 0 < (result.labels == 0).mean() < 1
        np.testing.assert_allclose(result.scores, plain.scores[: len(classes)], atol=1e-6)
    scores = plain.scores.astype(np.float64)  # with a threshold: its softmax is over classes and others
    share = np.exp(tiny.settings.scale * scores)
    share /= share.sum(0)
    result = tiny.segment(image, NAMES, background=True, threshold=0.3, others="sky")
    expected = np.where((share.max(0) >= 0.3) & (share.argmax(0) < 3), share.argmax(0) + 1, 0)
    clear = (np.abs(share.max(0) - 0.3) > 1e-4) & (np.diff(np.sort(share, axis=0), axis=0)[-1] > 1e-4)
    assert clear.mean() > 0.9 and np.array_equal(result.labels[clear], expected[clear]) and result.threshold == 0.3


def test_one_class_with_background_has_a_default_list_of_others(tiny):
    image = picture(40, 33)
    result = tiny.segment(image, ["apple trees"], background=True, threshold=0.01)
    assert result.names == ("background", "apple trees") and set(result.others) == set(OTHERS) - {"tree"}
    given = tiny.segment(image, ["apple trees"], background=True, threshold=0.01, others=result.others)
    assert np.array_equal(result.labels, given.labels) and result.scores.shape == (1, 40, 33)
    left_out = {"dog": set(), "fir; Tree": {"tree"}, "seaside": {"sea"}, "Grassland walls": {"grass", "wall"}, "rail": {"railway"}}
    assert {name: set(OTHERS) - set(besides([name])) for name in left_out} == left_out  # names with the beginning of a word in common


def test_a_picture_is_segmented_the_same_in_any_form_that_holds_it(tiny):
    colours, grey = picture(33, 40), picture(33, 40)[..., 0]
    in_colour, in_grey, deep = Image.fromarray(colours), Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)
    for image, forms in [(in_colour, [in_colour.convert("RGBA"), colours]), (in_grey.convert("RGB"), [in_grey, grey, deep])]:
        expected = tiny.segment(image, NAMES).scores
        assert all(np.array_equal(tiny.segment(form, NAMES).scores, expected) for form in forms)


def test_bad_images_and_bad_names_are_errors(tiny):
    arrays = [np.zeros((5, 5, 3), np.float32), np.zeros((5, 5), bool), np.zeros((5, 5, 4), np.uint8), np.zeros((1, 5, 5, 3), np.uint8)]
    for image in (*arrays, np.zeros(5, np.uint8), torch.zeros(5, 5, 3, dtype=torch.uint8), "cat.jpg", None):
        with pytest.raises(TypeError, match="image: .*: must be a PIL image or a uint8 array"):
            tiny.segment(image, NAMES)
    for image in (np.zeros((0, 5), np.uint8), np.zeros((5, 0, 3), np.uint8), Image.new("RGB", (0, 5))):
        with pytest.raises(ValueError, match="image: is empty"):
            tiny.segment(image, NAMES)
    for names, others, message in (
        ([], ["sky", "sea"], "at least two classes"),
        ("cat", [], "at least two classes, or one with background=True or with others"),
        (["cat", "dog", " cat"], None, "'cat' occurs twice"),
        (["cat"], ["sky", "cat"], "'cat' occurs twice"),
        (["cat; dog", "dog"], ["sky"], "'dog' occurs twice"),
        (["cat", "dog;"], None, "names = .*must be non-empty strings"),
        (None, None, "names = .*must be non-empty strings"),
        (["cat"], [3], "others = .*must be non-empty strings"),
        (["dog; Background", "cat"], ["sky"], "names must not include 'background'"),
    ):
        for background in (False, True):
            with pytest.raises(ValueError, match=message):
                check_names(names, background, others)


def test_bad_calls_are_errors(tiny, clip, decoder):
    image = picture(32, 32)
    with pytest.raises(ValueError, match="names must not include 'background'"):
        tiny.segment(image, ["background", "cat"], background=True)
    assert tiny.segment(image, ["background", "cat"]).names == ("background", "cat")
    for threshold in (-0.1, float("nan"), "0.5"):
        with pytest.raises(ValueError, match="threshold = .*: must be between 0 and 1"):
            tiny.segment(image, NAMES, background=True, threshold=threshold)
    with pytest.raises(ValueError, match="segment.window = 30: must be a multiple of.* 8"):
        Segmenter(clip, decoder, changed(window=30))
    with pytest.raises(ValueError, match="learned-group"):
        Segmenter(clip, decoder, changed(unit="learned-group"))
