"""What is written below example pictures, and label maps on their way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import changed

from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import WindowGrid, stitch
from ovseg.study import examples
from ovseg.training.decoder import Decoder


def test_miou_of_a_picture_is_over_the_classes_that_are_there():
    truth = np.array([[0, 0, 1, 255]])
    assert examples.picture_miou(np.array([[0, 1, 1, 2]]), truth, ["a", "b", "c", "d"]) == pytest.approx(50)  # a 1/2, b 1/2
    assert examples.picture_miou(np.zeros((1, 2), int), np.full((1, 2), 255), ["a", "b"]) is None


def test_captions_name_the_picture_and_the_miou_of_each_map():
    truth, wrong = np.zeros((2, 2), int), np.ones((2, 2), int)
    assert examples.captions([(None, truth, truth, wrong)], [7], ["a", "b"]) == [["picture 7", "", "mIoU 100.0%", "mIoU 0.0%"]]
    assert examples.captions([(None, truth + 255, truth)], [0], ["a", "b"]) == [["picture 0", "", ""]]


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["a cat.", "a cat, a dog and a bus.", "the dog and a bus", "a tree, a boat and a bird."], ([1, 3], 3)),
        (["a cat.", "a cat and a dog."], ([0, 1], 1)),  # fewer captions than wanted: all show as many as the poorest
        (["very", "a dog"], ([0, 1], 1)),
    ],
)
def test_captions_with_the_most_nouns_leave_no_panel_empty(texts, expected):
    assert examples.most_nouns(texts, 2, 3) == expected


def test_raw_labels_are_those_of_the_embeddings_in_blocks():
    """Two windows of 8 px with 4 x 4 embeddings, side by side without overlap: the label of each block of 2 x 2 px."""
    torch.manual_seed(0)
    cosines = torch.randn(2, 3, 4, 4)
    scores = stitch(cosines, WindowGrid(8, 16, (0,), (0, 8)), 8, (8, 16))
    segmenter = Segmenter(None, Decoder(4), changed(scale=1.0))
    encoded = SimpleNamespace(threshold=None, benchmark=SimpleNamespace(background=False))
    expected = np.kron(np.concatenate(cosines.argmax(1).numpy(), 1), np.ones((2, 2), int))
    assert np.array_equal(examples.raw(scores, encoded, segmenter), expected)


@pytest.mark.parametrize("averaged", ["cosine", "softmax"])
@pytest.mark.parametrize("of_benchmark, expected", [(None, 0.5), (0.6, 0.6)])
def test_raw_labels_below_the_threshold_are_background(of_benchmark, expected, averaged):
    cosines = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    share = np.exp(cosines[0].numpy())
    share = share / share.sum(0)
    averages = cosines if averaged == "cosine" else torch.from_numpy(share)[None]  # what `classify` stitches
    scores = stitch(averages, WindowGrid(4, 4, (0,), (0,)), 4, (4, 4))
    segmenter = Segmenter(None, Decoder(4), changed(scale=1.0, threshold=0.5, averaged=averaged))
    encoded = SimpleNamespace(threshold=of_benchmark, benchmark=SimpleNamespace(background=True))
    wanted = np.where(share.max(0) < expected, 0, 1 + share.argmax(0))
    assert np.array_equal(examples.raw(scores, encoded, segmenter), wanted)
