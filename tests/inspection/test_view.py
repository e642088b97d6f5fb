"""What a run computes of a picture, against numpy, the losses' own selection, and the segmenter that users call."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import P, changed, picture

from ovseg import Segmenter
from ovseg.inspection.view import NOT_JUDGED, RIGHT, WRONG, Texts, View, cells, errors
from ovseg.methods import groupvit
from ovseg.methods import mgca as method
from ovseg.segmentation import units
from ovseg.segmentation.windows import WindowGrid

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["cat", "sofa", "tall tree"]
WIDE = Image.fromarray(picture(32, 48))  # two windows of 32 pixels, 16 apart


@pytest.fixture(scope="module")
def segmenter(clip, decoder):
    return Segmenter(clip, decoder, changed(unit="meta-point"))


@pytest.fixture(scope="module")
def texts(clip):
    return Texts(clip, changed().templates)


def test_one_window_is_shown_as_it_is(segmenter):
    image = Image.fromarray(picture(32, 32))
    with torch.no_grad():
        expected = segmenter.decoder(segmenter.clip.encode_dense(np.asarray(image)[None]))[0]  # d, 8, 8
    assert torch.equal(View(segmenter, image).pixels, expected.permute(1, 2, 0))


def test_a_training_picture_is_one_window_of_its_size(segmenter):
    image = Image.fromarray(picture(16, 16))
    with torch.no_grad():
        expected = segmenter.decoder(segmenter.clip.encode_dense(np.asarray(image)[None]))[0]
    assert torch.equal(View(segmenter, image, side=16).pixels, expected.permute(1, 2, 0))  # 4, 4, d


def test_where_windows_overlap_the_one_with_the_nearer_centre_is_shown():
    found = cells(WindowGrid(32, 48, (0,), (0, 16)), window=32, side=8)  # an embedding is 4 pixels wide; centres at 16 and 32
    assert found.window[0].tolist() == [0] * 6 + [1] * 6
    assert found.column[3].tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    assert found.row[:, 0].tolist() == list(range(8))
    small = cells(WindowGrid(20, 32, (0,), (0,)), window=32, side=8)  # what lies beyond the picture is left out
    assert small.row.shape == (5, 8) and small.row[:, 0].tolist() == list(range(5))


@pytest.mark.parametrize(("alpha", "beta", "k"), [(0.4, 0.05, 0.06), (1.0, 0.5, 0.0), (0.01, 0.2, 0.01)])
def test_selection_is_that_of_a_sort_and_of_the_losses(segmenter, texts, alpha, beta, k):
    view = View(segmenter, WIDE)
    text, other = texts.raw("a red cat", NAMES), texts.raw("sofa", NAMES)
    found = view.select(text, other, alpha, beta, k)
    pixels = view.pixels.flatten(0, 1)  # 96, d
    for vector, share, mask in ((text, alpha, found.object), (other, beta, found.region)):
        order = np.argsort(-(pixels.double() @ vector.double()).numpy())
        size = min(96, max(1, int(share * 96 + 0.5)))
        assert set(np.flatnonzero(mask.numpy())) == set(order[:size])
    order = np.argsort(-(pixels.double() @ text.double()).numpy())
    assert np.ravel_multi_index(found.positive, (8, 12)) == order[max(1, int(k * 96 + 0.5)) - 1]
    assert np.ravel_multi_index(found.best, (8, 12)) == order[0]
    settings = P.mgca.model_copy(update={"alpha": alpha, "beta": beta, "k": k})
    batch = method.correspondences(
        pixels.expand(2, -1, -1), torch.stack([text, other]), ~torch.eye(2, dtype=torch.bool), settings
    )  # picture 0: text, other
    torch.testing.assert_close(found.similarity.flatten(), batch["similarity"][0])
    assert torch.equal(found.object.flatten(), batch["object"][0]) and torch.equal(found.region.flatten(), batch["region"][0])
    assert np.ravel_multi_index(found.positive, (8, 12)) == batch["positive"][0]


@pytest.mark.parametrize("unit", ["meta-point", "pixel", "group", "learned-group"])
def test_labels_are_those_of_the_segmenter(segmenter, texts, unit):
    torch.manual_seed(0)
    segmenter = Segmenter(segmenter.clip, segmenter.decoder, segmenter.settings, groupvit.Objective(P.groupvit, segmenter.clip.width))
    view = View(segmenter, WIDE)
    scores = view.score(view.form(unit, 4), texts.classes(NAMES))
    expected = segmenter.with_unit(unit).segment(WIDE, NAMES)
    assert np.array_equal(scores.labels().numpy(), expected.labels)
    assert len(np.unique(expected.labels)) > 1


def test_units_are_those_of_each_window_and_meta_points_lie_on_their_grid(segmenter):
    view = View(segmenter, WIDE)
    formed = view.form("meta-point", 4)
    _, expected = units.form(view.embeddings, "meta-point", 4)  # 2, 8, 8
    assert torch.equal(formed.ids[:, :6], expected[0, :, :6])
    assert torch.equal(formed.ids[:, 6:], expected[1, :, 2:] + expected.max() + 1)
    assert {tuple(point) for point in formed.points} == {(row, column) for row in (2, 6) for column in (2, 6, 10)}
    assert view.form("group", 4).points is None and len(view.form("pixel", 4).ids.unique()) == 96


def test_a_pixel_is_explained_by_the_scores_that_decide_its_label(segmenter, texts):
    view, classes = View(segmenter, WIDE), texts.classes(NAMES)
    formed = view.form("meta-point", 4)
    scores = view.score(formed, classes)
    expected = segmenter.segment(WIDE, NAMES)
    for y, x in ((0, 0), (17, 23), (31, 47)):
        found = view.explain(formed, scores, NAMES, classes, (y + 0.5) / 32, (x + 0.5) / 48, best=2)
        order = np.argsort(-expected.scores[:, y, x])[:2]
        assert [name for name, *_ in found.texts] == [NAMES[i] for i in order] and order[0] == expected.labels[y, x]
        assert [score for _, score, *_ in found.texts] == pytest.approx(expected.scores[order, y, x].tolist(), abs=1e-5)
        e = np.exp(changed().scale * expected.scores[:, y, x])
        assert [share for *_, share, _ in found.texts] == pytest.approx((e / e.sum())[order].tolist(), abs=1e-4)
        window, row, column = (int(part[y // 4, x // 4]) for part in view.cells)
        assert (found.window, found.unit) == (window, int(formed.of_windows[window, row, column]))
        members = view.embeddings[window][:, formed.of_windows[window] == found.unit]  # d, size
        mean = members.mean(1)
        assert found.size == members.shape[1]
        assert found.texts[0][3] == pytest.approx((classes[order[0]] @ mean / mean.norm()).item(), abs=1e-5)
        assert view.unit_scores(formed, classes[order[0]])[y // 4, x // 4] == pytest.approx(found.texts[0][3], abs=1e-5)


def test_a_class_is_its_prompts_and_any_other_text_itself(clip, texts):
    templates = changed().templates
    torch.testing.assert_close(texts.raw("cat", NAMES), clip.encode_text([t.format("cat") for t in templates]).mean(0))
    torch.testing.assert_close(texts.raw("cat", ["sofa"]), clip.encode_text(["cat"])[0])
    torch.testing.assert_close(texts.unit("cat", NAMES), clip.embed_classes(["cat"], templates)[0])
    assert texts.unit("a sunny day", NAMES).norm() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(texts.classes(NAMES[::-1]), clip.embed_classes(NAMES[::-1], templates))


def test_errors_of_a_case_made_by_hand():
    truth, classes = np.array([[0, 1, 2, 255]]), ["background", "Cat", "dog"]
    labels = np.array([[0, 1, 1, 1]])
    assert errors(labels, ["background", "cat", "dog"], truth, classes).tolist() == [[RIGHT, RIGHT, WRONG, NOT_JUDGED]]
    assert errors(labels, ["background", "cat"], truth, classes).tolist() == [[RIGHT, RIGHT, WRONG, NOT_JUDGED]]  # a dog is background
    assert errors(labels, ["dog", "cat"], truth, classes).tolist() == [[NOT_JUDGED, RIGHT, WRONG, NOT_JUDGED]]
    assert errors(labels, ["cow", "cat"], truth, classes).tolist() == [[NOT_JUDGED, RIGHT, NOT_JUDGED, NOT_JUDGED]]
