"""What a run computes of a picture, against numpy, and the segmenter that users call."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import P, changed, picture

from ovseg import Segmenter
from ovseg.inspection.view import NOT_JUDGED, RIGHT, WRONG, Picture, Texts, View, errors
from ovseg.methods import groupvit
from ovseg.segmentation import units

NAMES = ("cat", "sofa", "tall tree")
WIDE = Picture(Image.fromarray(picture(32, 48)), "", np.zeros((32, 48), int))  # two windows of 32 pixels, 16 apart


@pytest.fixture(scope="module")
def view(clip, decoder):
    torch.manual_seed(0)
    return View(Texts(Segmenter(clip, decoder, changed(unit="meta-point"), groupvit.Objective(P.groupvit, clip.width))), WIDE)


def test_one_window_is_shown_as_it_is(view):
    segmenter = view.segmenter
    for size, side in ((32, None), (16, 16)):
        pixels = picture(size, size)
        with torch.no_grad():
            expected = segmenter.decoder(segmenter.clip.encode_dense(pixels[None]))[0]
        assert torch.equal(View(Texts(segmenter), Picture(Image.fromarray(pixels), "", side=side)).pixels, expected.permute(1, 2, 0))


def test_where_windows_overlap_the_one_with_the_nearer_centre_is_shown(view):
    window, row, column = view.cells  # an embedding is 4 pixels wide; centres at 16 and 32
    assert window[0].tolist() == [0] * 6 + [1] * 6 and row[:, 0].tolist() == list(range(8))
    assert column[3].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    low = View(Texts(Segmenter(view.segmenter.clip, view.segmenter.decoder, changed(short_side=20))), WIDE)
    assert low.cells[1][:, 0].tolist() == list(range(5))  # what lies beyond the picture is left out


@pytest.mark.parametrize(("alpha", "beta", "k"), [(0.4, 0.05, 0.06), (1.0, 0.5, 0.0), (0.01, 0.2, 0.01)])
def test_selection_is_that_of_a_sort(view, alpha, beta, k):
    selected = view.select("a red cat", "sofa", NAMES, alpha, beta, k)
    pixels = view.pixels.flatten(0, 1).double().numpy()  # 96, d
    similarity, other = (pixels @ view.texts.raw(text, text in NAMES).double().numpy() for text in ("a red cat", "sofa"))
    np.testing.assert_allclose(selected["similarity"].flat, similarity, rtol=1e-5, atol=1e-5)
    for scores, share, name in ((similarity, alpha, "object"), (other, beta, "region")):
        size = min(96, max(1, int(share * 96 + 0.5)))
        assert set(np.flatnonzero(selected[name])) == set(np.argsort(-scores)[:size])
    assert np.ravel_multi_index(selected["positive"], (8, 12)) == np.argsort(-similarity)[max(1, int(k * 96 + 0.5)) - 1]


@pytest.mark.parametrize("unit", ["meta-point", "pixel", "group", "learned-group"])
def test_labels_are_those_of_the_segmenter(view, unit):
    labels = view.label(unit, 4, NAMES)[2]
    expected = view.segmenter.with_unit(unit).segment(WIDE.image, NAMES).labels
    assert np.array_equal(labels, expected) and len(np.unique(expected)) > 1


def test_units_are_those_of_each_window_and_meta_points_lie_on_their_grid(view):
    formed, _, _ = view.label("meta-point", 4, NAMES)
    expected = units.form(view.embeddings, "meta-point", 4)[1].numpy()  # 2, 8, 8
    assert np.array_equal(formed.ids, np.hstack([expected[0, :, :6], expected[1, :, 2:] + expected.max() + 1]))
    assert {tuple(point) for point in formed.points} == {(row, column) for row in (2, 6) for column in (2, 6, 10)}
    group, pixel = (view.label(unit, 4, NAMES)[0] for unit in ("group", "pixel"))
    assert not len(group.points) and len(np.unique(pixel.ids)) == 96


def test_a_pixel_is_explained_by_the_scores_that_decide_its_label(view):
    (formed, scores, _), expected = view.label("meta-point", 4, NAMES), view.segmenter.segment(WIDE.image, NAMES)
    for y, x in ((0, 0), (17, 23), (31, 47)):
        window, unit, size, best = view.explain(formed, scores, NAMES, ((y + 0.5) / 32, (x + 0.5) / 48), best=2)
        order = np.argsort(-expected.scores[:, y, x])[:2]
        chances = np.exp(changed().scale * expected.scores[:, y, x])
        members = view.embeddings[window][:, formed.of_windows[window] == unit].mean(1)
        assert window == (x >= 24) and unit == formed.of_windows[window, y // 4, x // 4 - 4 * window] and order[0] == expected.labels[y, x]
        assert size == (formed.of_windows[window] == unit).sum()
        for (name, *values), i in zip(best, order, strict=True):
            cosine = (view.texts.of_class(name) @ members / members.norm()).item()
            assert name == NAMES[i] and view.unit_scores(formed, name, NAMES)[y // 4, x // 4] == pytest.approx(cosine, abs=1e-5)
            assert values == pytest.approx([expected.scores[i, y, x], chances[i] / chances.sum(), cosine], abs=1e-4)


def test_a_class_is_embedded_with_its_prompts_and_any_other_text_as_it_is(clip, view):
    texts, templates = view.texts, changed().templates
    torch.testing.assert_close(texts.raw("cat", True), clip.encode_text([t.format("cat") for t in templates]).mean(0))
    torch.testing.assert_close(texts.raw("cat"), clip.encode_text(["cat"])[0])
    expected = torch.nn.functional.cosine_similarity(view.pixels, texts.raw("cat"), dim=-1)
    np.testing.assert_allclose(view.unit_scores(view.label("pixel", 4, NAMES)[0], "cat", ["sofa"]), expected, atol=1e-5)


def test_errors_of_a_case_made_by_hand():
    truth, classes, labels = np.array([[0, 1, 2, 255]]), ["background", "Cat", "dog"], np.array([[0, 1, 1, 1]])
    assert errors(labels, ["background", "cat", "dog"], truth, classes).tolist() == [[RIGHT, RIGHT, WRONG, NOT_JUDGED]]
    assert errors(labels, ["background", "cat"], truth, classes).tolist() == [[RIGHT, RIGHT, WRONG, NOT_JUDGED]]  # a dog is background
    assert errors(labels, ["dog", "cat"], truth, classes).tolist() == [[NOT_JUDGED, RIGHT, WRONG, NOT_JUDGED]]
    assert errors(labels, ["cow", "cat"], truth, classes).tolist() == [[NOT_JUDGED, RIGHT, NOT_JUDGED, NOT_JUDGED]]
