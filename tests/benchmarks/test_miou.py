"""mIoU by hand, and of an evaluation whose labels can be told by hand."""

import numpy as np
import pytest
import torch
from handmade import CLASSES, SETTINGS, columns
from tiny import write_benchmark

from ovseg.benchmarks import evaluation
from ovseg.benchmarks.datasets import FolderBenchmark
from ovseg.benchmarks.miou import MeanIoU, mean
from ovseg.segmentation.segmenter import Segmenter
from ovseg.training.decoder import Decoder


def test_iou_by_hand_with_ignored_pixels():
    metric = MeanIoU("abcd")
    metric.update(np.array([[0, 1, 1], [1, 0, 0]]), np.array([[0, 0, 1], [1, 255, 2]]))
    metric.update(torch.tensor([[1, 255]]), np.array([[255, 255]], np.uint8))  # what is ignored may be predicted as anything
    # a: 1 of 3 pixels, b: 2 of 3, c: there but never predicted, d: nowhere; ignored pixels count for none
    assert metric.compute() == {"a": pytest.approx(100 / 3), "b": pytest.approx(200 / 3), "c": 0.0, "d": None}
    assert mean({"a": 10.0, "b": None, "c": 40.0}) == 25 and mean({"b": None}) is None and mean({}) is None


def test_evaluation_by_hand(tmp_path):
    def evaluate(maps, features, classes=CLASSES, threshold=None):
        benchmark = FolderBenchmark("mine", write_benchmark(tmp_path / f"{len(classes)}", maps, classes))
        data = evaluation.Encoded(benchmark, torch.eye(2), np.array(features, np.float16), threshold)  # texts are (1, 0) and (0, 1)
        return evaluation.evaluate({"one": Segmenter(None, Decoder(2), SETTINGS)}, [data])["mine"]["one"]

    maps = [columns(0, 0, 0, 0, 0, 0, 1, 1), columns(*[255] * 3, 0, *[1] * 4)]
    # predicted: four columns of each. Over both pictures: car 5 of 7 columns, grass 6 of 8
    features = [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]  # of 2 x 2 patches, the left half like the first class, the right like the second
    assert evaluate(maps, [features] * 2, ("car", "grass")) == {"car": pytest.approx(500 / 7), "grass": pytest.approx(600 / 8)}
    # cosines of the columns with class 1 are 1 1 1 3/4 1/4 0 0 0, with class 2 all 0; the sigmoid is above 0.6 in the first four
    iou = evaluate([columns(1, 1, 1, 0, 0, 0, 2, 2)], [[features[0], [[0, 0], [0, 0]]]], threshold=0.6)
    assert iou == {"background": pytest.approx(200 / 5), "a": pytest.approx(300 / 4), "b": 0.0}
