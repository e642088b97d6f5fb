"""What holds for any input of units and windows. Inputs are drawn by hypothesis, in each run the same."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import changed

from ovseg.segmentation import units
from ovseg.segmentation.windows import interpolation, stitch, window_grid

drawn = settings(derandomize=True, database=None, deadline=None, max_examples=20)
SEEDS = st.integers(0, 1000)


@drawn
@given(SEEDS, st.integers(3, 8), st.integers(3, 8), st.sampled_from(["pixel", "meta-point", "group"]), st.integers(1, 3), st.booleans())
@example(0, 3, 3, "meta-point", 3, False)  # as many as pixels
def test_each_pixel_is_in_one_unit_whose_mean_it_gets(seed, height, width, unit, side, dot):
    embeddings = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed))
    spread, assignment = units.form(embeddings, unit, side**2, side**2, "dot" if dot else "cosine")
    count = height * width if unit == "pixel" else side**2
    assert spread.shape == embeddings.shape and assignment.shape == (2, height, width)
    assert assignment.min() >= 0 and assignment.max() < count
    assert dot or count < height * width or all(len(of_pixels.unique()) == count for of_pixels in assignment)
    for pixels, means, of_pixels in zip(embeddings, spread, assignment, strict=True):
        for which in of_pixels.unique():
            members = pixels[:, of_pixels == which]
            torch.testing.assert_close(means[:, of_pixels == which], members.mean(1, keepdim=True).expand_as(members), rtol=1e-4, atol=1e-5)


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
