"""Positional embeddings on other grids as DINO's code interpolates them (clip.positions = scale-factor), restated as sums."""

import copy
import math

import open_clip
import pytest
import torch
from test_dense import noise, opened, plain_clip, siglip_clip
from tiny import P

from ovseg.clip import dense
from ovseg.clip.frozen import FrozenCLIP

pytestmark = pytest.mark.usefixtures("one_thread")


def along(before, after):
    """The matrix (after, before) of bicubic interpolation (a = -0.75, edges repeated) by the factor (after + 0.1) / before."""
    matrix, factor = torch.zeros(after, before), (after + 0.1) / before
    for row in range(math.floor(before * factor)):
        place = (row + 0.5) / factor - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), before - 1)] += weight
    return matrix


def by_dino(positions, before, grid):
    if tuple(before) == tuple(grid):
        return positions
    maps = positions.unflatten(0, before)
    return torch.einsum("yh,xw,hwc->yxc", along(before[0], grid[0]), along(before[1], grid[1]), maps).flatten(0, 1)


@pytest.mark.parametrize("grid", [(28, 28), (14, 14), (28, 42), (7, 28), (13, 15), (1, 1), (2, 128)])
def test_positions_by_scale_factor_are_dinos(grid):
    positions = torch.randn(14 * 14, 5, generator=torch.Generator().manual_seed(0))
    found = dense.resized(positions, (14, 14), grid, "scale-factor")
    torch.testing.assert_close(found, by_dino(positions, (14, 14), grid), rtol=1e-4, atol=1e-5)
    by_size = dense.resized(positions, (14, 14), grid)
    assert torch.equal(by_size, positions) if grid == (14, 14) else (found - by_size).norm() > 0.003 * by_size.norm()


@pytest.mark.parametrize("height, width", [(64, 64), (128, 128), (96, 160)])
def test_both_towers_add_them_to_their_patches(height, width):
    images, grid = noise(2, height, width), (height // 16, width // 16)
    plain, pooling = plain_clip(), siglip_clip()
    with torch.no_grad():
        v, tower = plain.visual, dense.tower(opened(plain).visual, "scale-factor")
        patches = v.conv1(images).flatten(2).transpose(1, 2) + by_dino(v.positional_embedding[1:], v.grid_size, grid)
        first = (v.class_embedding + v.positional_embedding[0]).expand(2, 1, -1)
        torch.testing.assert_close(tower.embed(images), v.ln_pre(torch.cat([first, patches], 1)), rtol=1e-4, atol=1e-4)
        trunk, tower = pooling.visual.trunk, dense.tower(pooling.visual, "scale-factor")
        patches = trunk.patch_embed.proj(images).flatten(2).transpose(1, 2)
        expected = patches + by_dino(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid)
        torch.testing.assert_close(tower.embed(images), expected, rtol=1e-4, atol=1e-4)


def test_a_clip_is_opened_with_its_positions(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: copy.deepcopy(clip.clip))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: clip.tokenizer)
    found = {}
    for how in ("size", "scale-factor"):
        found[how] = FrozenCLIP.open(P.clip.model_copy(update={"positions": how}))
        assert found[how].positions == how
    for side, same in ((clip.image_size, True), (2 * clip.image_size, False)):
        images = (255 * torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))).byte().numpy()
        one, other = (of.encode_dense(images) for of in found.values())
        assert torch.equal(one, other) == same
    assert found["size"].fingerprint == clip.fingerprint != found["scale-factor"].fingerprint
