"""mIoU by hand, by torchmetrics, and of an evaluation whose labels can be told by hand."""

import json

import numpy as np
import pytest
import torch
from handmade import FIRST_NEITHER, FIRST_SECOND, columns, encoded, segmenter
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from ovseg.benchmarks import evaluation
from ovseg.benchmarks.miou import MeanIoU, mean

pytestmark = pytest.mark.usefixtures("one_thread")


def iou(classes, *maps):
    """IoU of (predicted, truth) label maps."""
    metric = MeanIoU(classes)
    for predicted, truth in maps:
        metric.update(np.array(predicted), np.array(truth))
    return metric.compute()


def test_iou_by_hand_with_ignored_pixels():
    found = iou("abcd", ([[0, 1, 1], [1, 0, 0]], [[0, 0, 1], [1, 255, 2]]))
    # a: 1 of 3 pixels, b: 2 of 3, c: there but never found, d: nowhere; the ignored pixel counts for none
    assert found == {"a": pytest.approx(100 / 3), "b": pytest.approx(200 / 3), "c": 0.0, "d": None}
    assert mean(found) == pytest.approx(100 / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    found = iou("ab", ([[0, 1]], [[0, 0]]))
    assert found == {"a": pytest.approx(50), "b": 0.0} and mean(found) == pytest.approx(25)


def test_the_mean_leaves_out_classes_that_are_nowhere():
    found = {"a": 10.0, "b": None, "c": 40.0}
    assert mean(found) == 25 and mean({"b": None}) is None and mean({}) is None


def test_a_picture_of_ignored_pixels_changes_nothing():
    first = ([[0, 1]], [[0, 0]])
    assert iou("ab", first, ([[1, 1]], [[255, 255]])) == iou("ab", first)
    assert iou("ab", ([[1, 1]], [[255, 255]])) == {"a": None, "b": None}


@pytest.mark.parametrize("count", [2, 7, 171])
@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_iou_is_that_of_torchmetrics(count, kind):
    rng = np.random.default_rng(count)
    names = [f"c{i}" for i in range(count)]
    found = MeanIoU(names)
    matrix = MulticlassConfusionMatrix(count, ignore_index=255, validate_args=False)
    jaccard = MulticlassJaccardIndex(count, average=None, ignore_index=255, validate_args=False)
    for _ in range(3):
        shape = rng.integers(5, 25, 2)
        truth, predicted = (rng.integers(0, count, shape).astype(kind) for _ in range(2))
        ignored = rng.random(shape) < 0.3
        truth[ignored] = 255
        predicted[ignored & (rng.random(shape) < 0.5)] = 255  # what is ignored may be predicted as anything
        found.update(torch.from_numpy(predicted) if kind is np.int64 else predicted, truth)
        for oracle in (matrix, jaccard):
            oracle.update(torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    assert np.array_equal(found.matrix, matrix.compute())
    iou = found.compute()
    there = [i for i, name in enumerate(names) if iou[name] is not None]
    assert there == ((matrix.compute().sum(0) + matrix.compute().sum(1)) > 0).nonzero().flatten().tolist()
    assert [iou[names[i]] for i in there] == pytest.approx((100 * jaccard.compute()[there].double()).tolist(), rel=1e-5)


def evaluate(data):
    """IoU of each class by a segmenter that scores the features as they are."""
    return evaluation.evaluate({"one": segmenter()}, [data])["mine"]["one"]


def test_evaluation_by_hand(tmp_path):
    maps = [columns(0, 0, 0, 0, 0, 0, 1, 1), columns(*[255] * 3, 0, *[1] * 4)]
    found = evaluate(encoded(tmp_path, maps, [FIRST_SECOND] * 2, ("car", "grass")))
    # predicted: four columns of each. Over both pictures: car 5 of 7 columns, grass 6 of 8
    assert found == {"car": pytest.approx(500 / 7), "grass": pytest.approx(600 / 8)}


def test_evaluation_with_a_background_by_hand(tmp_path):
    # cosines of the columns with class 1 are 1 1 1 3/4 1/4 0 0 0, with class 2 all 0; the sigmoid is above 0.6 in the first four
    found = evaluate(encoded(tmp_path, [columns(1, 1, 1, 0, 0, 0, 2, 2)], [FIRST_NEITHER], threshold=0.6))
    assert found == {"background": pytest.approx(200 / 5), "a": pytest.approx(300 / 4), "b": 0.0}


def test_a_class_that_is_nowhere_is_null(tmp_path):
    data = encoded(tmp_path, [columns(*[1] * 8)], [[[[1, 1], [1, 1]], [[0, 0], [0, 0]]]], threshold=0.6)
    assert json.loads(json.dumps(evaluate(data))) == {"background": None, "a": 100, "b": None}
