"""What holds for any input: losses, units, windows, mIoU. Inputs are drawn by hypothesis, in each run the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import P, changed

from ovseg.benchmarks.miou import MeanIoU, mean
from ovseg.methods import mgca
from ovseg.segmentation import units
from ovseg.segmentation.windows import interpolation, stitch, window_grid
from ovseg.training import objectives

pytestmark = pytest.mark.usefixtures("one_thread")

drawn = settings(derandomize=True, database=None, deadline=None, max_examples=20)
SEEDS = st.integers(0, 1000)
LEVELS = ("object", "region", "pixel")


def batch(seed, size=4, length=9, width=6):
    """pixels (B, L, d), texts (B, d), subjects (B,), the second text's and the last one's the same."""
    generator = torch.Generator().manual_seed(seed)
    subjects = torch.arange(size)
    subjects[-1] = subjects[1]
    return torch.randn(size, length, width, generator=generator), torch.randn(size, width, generator=generator), subjects


def losses(pixels, texts, subjects, mask=True, **values):
    negative = objectives.negatives(subjects, mask)
    return mgca.losses(pixels, texts, negative, P.mgca.model_copy(update={"granularity": "+".join(LEVELS)} | values))


def same(first, second, levels=LEVELS):
    torch.testing.assert_close(*([of[level] for level in levels] for of in (first, second)), rtol=1e-4, atol=1e-5)


@drawn
@given(SEEDS, st.permutations(range(4)), st.permutations(range(9)), st.sampled_from(["both", "image-to-text", "text-to-image"]))
def test_losses_do_not_depend_on_the_order_of_pairs_or_pixels_or_on_the_axes_of_the_joint_space(seed, pairs, places, direction):
    pixels, texts, subjects = batch(seed)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed + 1)))[0]
    expected = losses(pixels, texts, subjects, direction=direction)
    assert all(0 <= value < math.inf for value in expected.values())
    same(losses(pixels[pairs][:, places] @ turn, texts[pairs] @ turn, subjects[pairs], direction=direction), expected)


@drawn
@given(SEEDS, st.lists(st.floats(0.2, 5), min_size=4, max_size=4), st.lists(st.floats(0.2, 5), min_size=4, max_size=4))
def test_object_and_region_of_one_pixel_are_cosines_whatever_the_lengths(seed, of_texts, of_images):
    pixels, texts, subjects = batch(seed)
    one = {"alpha": 0.01, "beta": 0.01, "k": 0.0}
    scaled = losses(pixels * torch.tensor(of_images)[:, None, None], texts * torch.tensor(of_texts)[:, None], subjects, **one)
    same(scaled, losses(pixels, texts, subjects, **one), LEVELS[:2])


@drawn
@given(SEEDS, st.floats(0.2, 5))
def test_a_length_counts_alike_in_texts_and_pixels(seed, scale):
    pixels, texts, subjects = batch(seed)
    same(losses(pixels * scale, texts, subjects), losses(pixels, texts * scale, subjects))


@drawn
@given(SEEDS)
def test_without_negatives_there_is_nothing_to_lose(seed):
    pixels, texts, subjects = batch(seed)
    assert all(value == 0 for value in losses(pixels, texts, torch.zeros_like(subjects)).values())
    assert all(value > 0 for value in losses(pixels, texts, torch.zeros_like(subjects), mask=False).values())


@drawn
@given(SEEDS, st.integers(2, 6), st.floats(-50, 50), st.floats(0, 20))
def test_info_nce_sees_differences_of_logits_alone(seed, size, shift, equal):
    logits = 3 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    negative = ~torch.eye(size, dtype=torch.bool)
    for direction in ("both", "image-to-text", "text-to-image"):
        expected = objectives.info_nce(logits, negative, direction)
        torch.testing.assert_close(objectives.info_nce(logits + shift, negative, direction), expected, rtol=1e-4, atol=1e-4)
        assert objectives.info_nce(torch.full((size, size), equal), negative, direction).item() == pytest.approx(math.log(size), rel=1e-5)
    of_images = [objectives.info_nce(given, negative, "image-to-text") for given in (logits, logits + torch.arange(float(size))[:, None])]
    torch.testing.assert_close(*of_images)  # each image may have a shift of its own


@drawn
@given(SEEDS, st.integers(3, 8), st.integers(3, 8), st.sampled_from(["pixel", "meta-point", "group"]), st.integers(1, 3), st.booleans())
def test_each_pixel_is_in_one_unit_whose_mean_it_gets(seed, height, width, unit, side, dot):
    embeddings = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed))
    spread, assignment = units.form(embeddings, unit, side**2, side**2, "dot" if dot else "cosine")
    count = height * width if unit == "pixel" else side**2
    assert spread.shape == embeddings.shape and assignment.shape == (2, height, width)
    assert assignment.min() >= 0 and assignment.max() < count
    for pixels, means, of_pixels in zip(embeddings, spread, assignment, strict=True):
        for which in of_pixels.unique():
            members = pixels[:, of_pixels == which]
            torch.testing.assert_close(means[:, of_pixels == which], members.mean(1, keepdim=True).expand_as(members), rtol=1e-4, atol=1e-5)


@drawn
@given(SEEDS, st.integers(2, 7), st.sampled_from(["meta-point", "group"]), st.integers(0, 30))
def test_as_many_meta_points_as_pixels_or_as_many_groups_or_more_are_the_pixels(seed, side, unit, more):
    embeddings = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(seed))
    spread, assignment = units.form(embeddings, unit, side**2, side**2 + more)
    assert all(len(one.unique()) == side**2 for one in assignment)
    assert unit == "group" or torch.equal(assignment, units.form(embeddings, "pixel")[1])
    torch.testing.assert_close(spread, embeddings)


SIDES = st.integers(1, 150)
GRIDS = st.tuples(*map(st.sampled_from, ([8, 16, 24, 32], [1, 3, 8, 20, 32], [1, 2, 4, 8])))  # window, stride, embeddings a side


@drawn
@given(SIDES, SIDES, GRIDS, st.integers(8, 40), st.floats(1, 6))
def test_the_weights_of_windows_are_a_partition_of_unity(height, width, grids, short_side, max_ratio):
    window, stride, grid = grids
    segment = changed(window=window, stride=min(stride, window), short_side=short_side, max_ratio=max_ratio)
    where = window_grid(height, width, segment)
    for length, starts, size in ((where.height, where.tops, height), (where.width, where.lefts, width)):
        weights = interpolation(length, starts, window, grid, size)
        assert weights.shape == (size, len(starts) * grid) and weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(size))
    constant = torch.full((len(where.positions), 2, grid, grid), 3.0)
    torch.testing.assert_close(stitch(constant, where, window, (height, width)).rows(), torch.full((2, height, width), 3.0))


LABELS = st.lists(st.integers(0, 4), min_size=12, max_size=12)
TRUTHS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 255]), min_size=12, max_size=12)


@drawn
@given(LABELS, TRUTHS, st.permutations(range(5)))
def test_miou_lies_between_none_right_and_all_right(predicted, truth, order):
    def ious(predicted, truth):
        matrix = MeanIoU("abcde")
        for part in (slice(0, 5), slice(5, 12)):  # of two images
            matrix.update(np.array(predicted[part])[None], np.array(truth[part])[None])
        return matrix.compute()

    values, seen = ious(predicted, truth), {"abcde"[t] for t in truth if t != 255}
    assert all(value is None or 0 <= value <= 100 for value in values.values())
    assert {name for name, value in values.items() if value is not None} >= seen
    right = [p == t for p, t in zip(predicted, truth, strict=True) if t != 255]
    assert (mean(values) == 100) == (bool(right) and all(right)) and (mean(values) is None) == (not right)
    assert (mean(values) == 0) == (bool(right) and not any(right))
    perfect = ious([t if t != 255 else p for p, t in zip(predicted, truth, strict=True)], truth)
    assert perfect == dict.fromkeys("abcde") | dict.fromkeys(seen, 100)
    renamed = ious([order[p] for p in predicted], [order[t] if t != 255 else t for t in truth])
    assert renamed == {"abcde"[order[i]]: values["abcde"[i]] for i in range(5)}
