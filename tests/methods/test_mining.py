"""What mining does beyond the losses: gradients by finite differences, shares of a batch, ties, zeros, precisions.

That it selects what the equations do is tested with the losses, in test_alignment.py.
"""

import pytest
import torch

from ovseg.methods import mining


def inputs(images=5, texts=4, length=12, width=7, dtype=torch.float64):
    """Pixels, texts, and which text is each image's own: some have the same, some texts are nobody's."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, length, width, generator=generator, dtype=dtype).requires_grad_()
    own = torch.randint(texts, (images,), generator=generator)
    return pixels, torch.randn(texts, width, generator=generator, dtype=dtype), own


def test_gradients_agree_with_finite_differences():
    pixels, texts, own = inputs(images=2, texts=3, length=6, width=4)
    assert torch.autograd.gradcheck(lambda v: tuple(mining.mine(v, texts, own, 4, 2, 3)), pixels)


def test_a_process_finds_in_its_images_what_one_finds_in_all():
    pixels, texts, own = inputs()
    for part, whole in zip(mining.mine(pixels[3:], texts, own[3:], 4, 2, 3), mining.mine(pixels, texts, own, 4, 2, 3), strict=True):
        torch.testing.assert_close(part, whole[3:])


def test_a_pixel_that_nothing_selects_gets_no_gradient():
    pixels, texts, own = inputs()
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)
    selected = scores.topk(2, dim=-1).indices.flatten(1), scores[torch.arange(5), own].topk(3, dim=-1).indices
    found = mining.mine(pixels, texts, own, 3, 1, 2)
    (gradient,) = torch.autograd.grad(found.peak.sum() + found.region.sum() + found.objects.sum(), pixels)
    chosen = torch.zeros(pixels.shape[:2], dtype=torch.bool).scatter(1, torch.cat(selected, 1), True)
    assert not chosen.all() and torch.equal(gradient.abs().sum(-1) > 0, chosen)


def test_zero_embeddings_give_zero_and_finite_gradients():
    pixels = torch.zeros(2, 4, 3, requires_grad=True)
    found = mining.mine(pixels, torch.zeros(2, 3), torch.arange(2), 2, 1, 2)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in found), pixels)
    assert not any(value.any() for value in found) and gradient.isfinite().all()


@pytest.mark.parametrize("length, count", [(64, 8), (64, 3), (64, 9), (63, 3), (8, 1)])
def test_largest_is_topk(length, count):
    scores = torch.randn(3, 5, length, generator=torch.Generator().manual_seed(0))
    for actual, expected in zip(mining.largest(scores, count), scores.topk(count), strict=True):
        assert torch.equal(actual, expected)


def test_selection_in_bfloat16_is_close_on_random_pixels_and_not_the_same():
    sizes = dict(images=16, texts=16, length=196, width=64, dtype=torch.float32)
    exact, low = (mining.mine(*inputs(**sizes), 78, 12, 10, selection=s) for s in ("float32", "bfloat16"))
    torch.testing.assert_close((exact.objects, exact.positive), (low.objects, low.positive))  # an image's own text: always in full
    for full, found in ((exact.peak, low.peak), (exact.region, low.region)):
        assert (full - found).abs().max() < 0.02 * full.abs().max() and not torch.equal(full, found)


def test_autocast_changes_nothing():
    found = []
    for enabled in (False, True):
        pixels, texts, own = inputs(images=4, texts=4, length=49, width=64, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mined = mining.mine(pixels, texts, own, 20, 3, 5)
            found.append((*mined, *torch.autograd.grad(sum(value.sum() for value in mined), pixels)))
    for low, full in zip(*found, strict=True):
        torch.testing.assert_close(low, full)
