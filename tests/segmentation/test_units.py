"""Semantic units against hand-made maps; that units are means of their pixels is in tests/test_properties.py."""

import pytest
import torch
import torch.nn.functional as F

from ovseg.segmentation import units


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_meta_points_lie_uniformly_on_the_grid():
    expected = [2, 7, 11, 16, 21, 25]  # 28 / 6 * (0.5, 1.5, ...) cut off: the paper's 36
    assert units.meta_points(28, 28, 36).tolist() == [y * 28 + x for y in expected for x in expected]
    assert units.meta_points(6, 10, 4).tolist() == [1 * 10 + 2, 1 * 10 + 7, 4 * 10 + 2, 4 * 10 + 7]
    with pytest.raises(ValueError, match="meta_points = 36: must be at most 25 on a 5x8 grid"):
        units.meta_points(5, 8, 36)


@pytest.mark.parametrize("affinity", ["cosine", "dot"])
def test_each_pixel_joins_the_most_similar_meta_point(affinity):
    windows = embeddings(2, 5, 5, 8)
    _, assignment = units.form(windows, "meta-point", meta_point_count=16, affinity=affinity)
    for unit, window in zip(assignment, windows.flatten(2).transpose(1, 2), strict=True):  # 40 pixels x 5
        centres = window[units.meta_points(5, 8, 16)]
        similar = F.cosine_similarity(window[:, None], centres, dim=-1) if affinity == "cosine" else window @ centres.T
        assert torch.equal(similar.argmax(1), unit.flatten())


@pytest.mark.parametrize("unit", ["meta-point", "group"])
def test_a_window_does_not_depend_on_other_windows_nor_on_lengths_nor_on_the_random_state(unit):
    windows, sizes = embeddings(2, 4, 6, 6), {"meta_point_count": 9, "groups": 5}
    spread, assignment = units.form(windows, unit, **sizes)
    for i in range(2):
        torch.manual_seed(i)
        alone_spread, alone_assignment = units.form(windows[i : i + 1], unit, **sizes)
        assert torch.equal(assignment[i], alone_assignment[0]) and 1 < len(assignment[i].unique()) <= 9
        torch.testing.assert_close(spread[i], alone_spread[0], rtol=1e-12, atol=1e-12)
    lengths = embeddings(2, 1, 6, 6, seed=1).exp()
    assert torch.equal(units.form(windows * lengths, unit, **sizes)[1], assignment)


@pytest.mark.parametrize(("groups", "layout"), [(3, [[0, 0], [1, 2]]), (8, [[0, 1, 2], [3, 3, 4], [5, 6, 7]])])
def test_groups_are_the_clusters_that_are_there(groups, layout):
    layout = torch.tensor(layout)
    truth = layout.repeat_interleave(12 // len(layout), 0).repeat_interleave(12 // len(layout), 1)  # 12, 12
    directions = torch.eye(groups + 2, dtype=torch.float64)[truth]
    window = (directions * 3 + 0.2 * embeddings(12, 12, groups + 2)).permute(2, 0, 1)[None]
    _, assignment = units.form(window, "group", groups=groups)
    pairs = set(zip(truth.flatten().tolist(), assignment.flatten().tolist(), strict=True))
    assert len(pairs) == groups and len({a for _, a in pairs}) == groups  # one to one


def test_groups_end_where_each_pixel_is_most_similar_to_its_own_group():
    # clusters that overlap somewhat: they settle within the steps, but only after some of them
    directions = torch.eye(6, dtype=torch.float64)[torch.arange(64).view(8, 8) % 5]
    window = (directions + 0.25 * embeddings(8, 8, 6)).permute(2, 0, 1)[None]
    _, assignment = units.form(window, "group", groups=5)
    pixels, present = F.normalize(window[0].flatten(1).T, dim=-1), assignment.unique()
    centres = torch.stack([pixels[assignment.flatten() == unit].mean(0) for unit in present])
    nearest = present[(pixels @ F.normalize(centres, dim=-1).T).argmax(1)]
    assert len(present) > 1 and torch.equal(nearest, assignment.flatten())
