"""Outlier patches: written into features, in training, and found by their norm."""

import numpy as np
import pytest
import torch
from small import changed, make_pairs, same

from ovseg.training import loop, outliers
from ovseg.training.batches import CachedImages

DATA = make_pairs()


def test_a_share_of_the_patches_becomes_one_of_three_vectors_three_times_as_long_as_a_mean_feature():
    features = np.random.default_rng(1).normal(size=(60, 16, 8, 8)).astype(np.float16)
    before, after = features.copy(), outliers.overwrite(features, 0.05, seed=2)
    assert np.array_equal(features, before) and after.dtype == np.float16  # a copy
    moved = (after != before).any(1)
    assert abs(moved.mean() - 0.05) < 0.015  # 4 standard deviations of 3840 draws
    lengths = np.linalg.norm(np.unique(after.transpose(0, 2, 3, 1)[moved], axis=0).astype(float), axis=1)
    assert lengths == pytest.approx([3 * np.linalg.norm(before.astype(float), axis=1).mean()] * 3, rel=1e-3)
    assert [np.array_equal(after, outliers.overwrite(features, 0.05, seed)) for seed in (2, 3)] == [True, False]


def test_long_patches_are_found_and_how_often_they_are_the_most_similar_to_the_text():
    length = 1 + 0.01 * torch.rand(10, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    features, texts = length * 0.5**0.5 * torch.ones(10, 2, 3, 3), torch.tensor([1.0, 0.0]).expand(10, 2)
    features[:, :, 0, 0] = texts  # the first patch is the most similar
    assert outliers.found(features, texts) == (0, 0)
    features[:4, :, 2, 1], features[4:, :, 2, 1] = torch.tensor([9.0, 0]), torch.tensor([0, 9.0])  # along the text; at a right angle to it
    every, first = outliers.found(features, texts)
    assert np.isclose(every, 1 / 9) and np.isclose(first, 0.4)


def test_a_training_reads_them(tmp_path):
    by_hand = DATA._replace(images=CachedImages(outliers.overwrite(DATA.images.array, 0.2, seed=4)))
    cases = enumerate([(changed(outliers=0.2), DATA), (changed(), by_hand), (changed(), DATA)])
    read, expected, without = (loop.train(p, 4, pairs, tmp_path / f"{n}.pt")[0].state_dict() for n, (p, pairs) in cases)
    assert same(read, expected) and not same(without, expected)
