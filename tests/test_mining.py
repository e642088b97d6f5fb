"""Hard negatives against the equations written with all of S and autograd, at every way of cutting the batch."""

import pytest
import torch
import torch.nn.functional as F

from ovseg import mining


def plain(pixels, texts, top):
    """Eq. 2, 6 and 7 with S (B, T, L) and r (B, T, d) in full."""
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)
    kept, index = scores.topk(top, dim=-1)
    weights = torch.zeros_like(scores).scatter(-1, index, kept.softmax(-1))
    regions = torch.einsum("ijp,ipd->ijd", weights, pixels)
    return scores.amax(-1), F.cosine_similarity(regions, texts[None], dim=-1)


def inputs(images=5, texts=4, length=12, width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, length, width, generator=generator, dtype=dtype).requires_grad_()
    return pixels, torch.randn(texts, width, generator=generator, dtype=dtype).requires_grad_()


def values_and_gradients(function, pixels, texts, top, seed=1):
    """Peaks, regions, and the gradients of a random combination of both by pixels and by texts."""
    peak, region = function(pixels, texts, top)
    generator = torch.Generator().manual_seed(seed)
    pull = [torch.randn(peak.shape, generator=generator, dtype=torch.float64).to(peak.dtype) for _ in range(2)]
    return peak, region, *torch.autograd.grad((peak * pull[0] + region * pull[1]).sum(), (pixels, texts))


@pytest.mark.parametrize("top", [1, 3, 12])
@pytest.mark.parametrize("entries", [1, 2 * 4 * 12, 1 << 20])  # an image at a time, two (the last chunk holds one), all
def test_values_and_gradients_are_those_of_the_equations(monkeypatch, top, entries):
    monkeypatch.setattr(mining, "ENTRIES", entries)
    for actual, expected in zip(*(values_and_gradients(f, *inputs(), top) for f in (mining.hard_negatives, plain)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_float32_agrees_to_four_digits_at_a_larger_size():
    sizes = dict(images=16, texts=16, length=196, width=64, dtype=torch.float32)
    for actual, expected in zip(*(values_and_gradients(f, *inputs(**sizes), 10) for f in (mining.hard_negatives, plain)), strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(lambda v, t: mining.hard_negatives(v, t, 3), inputs(images=2, texts=3, length=6, width=4))


def test_more_texts_than_images_and_the_reverse():
    for images, texts in ((1, 6), (6, 1)):
        peak, region = mining.hard_negatives(*inputs(images=images, texts=texts), 3)
        expected = plain(*inputs(images=images, texts=texts), 3)
        torch.testing.assert_close((peak, region), expected)


def test_a_pixel_that_nothing_selects_gets_no_gradient():
    pixels, texts = inputs()
    values, index = torch.einsum("ipd,jd->ijp", pixels, texts).topk(2, dim=-1)
    peak, region = mining.hard_negatives(pixels, texts, 2)
    (gradient,) = torch.autograd.grad(peak.sum() + region.sum(), pixels)
    chosen = torch.zeros(pixels.shape[:2], dtype=torch.bool).scatter(1, index.flatten(1), True)
    assert not chosen.all() and torch.equal(gradient.abs().sum(-1) > 0, chosen)


def test_zero_embeddings_give_zero_and_finite_gradients():
    pixels, texts = torch.zeros(2, 4, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    peak, region = mining.hard_negatives(pixels, texts, 2)
    gradients = torch.autograd.grad(peak.sum() + region.sum(), (pixels, texts))
    assert not peak.any() and not region.any() and all(g.isfinite().all() for g in gradients)


def test_spread_is_the_transpose_of_pool():
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(8)]).view(2, 4, 3)
    pixels, weights, vectors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 9, 5), (2, 4, 3), (2, 4, 5)))
    one_way = (mining.pool(pixels, index, weights) * vectors).sum()
    other = (pixels * mining.spread([(vectors, weights)], index, 9)).sum()
    torch.testing.assert_close(one_way, other)
