"""Mining against the equations written with all of S and autograd, at every way of cutting the batch."""

import pytest
import torch
import torch.nn.functional as F

from ovseg.methods import mining


def plain(pixels, texts, own, object_top, rank, region_top):
    """Eq. 2-7 with S (B, T, L) and r (B, T, d) in full."""

    def pool(scores, top):
        kept, index = scores.topk(top, dim=-1)
        return torch.einsum("ijp,ipd->ijd", torch.zeros_like(scores).scatter(-1, index, kept.softmax(-1)), pixels)

    scores = torch.einsum("ipd,jd->ijp", pixels, texts)
    paired = scores[torch.arange(len(pixels)), own]
    regions = pool(scores, region_top)
    positive = paired.sort(-1, descending=True).values[:, rank - 1]
    return pool(paired[:, None], object_top)[:, 0], positive, scores.amax(-1), F.cosine_similarity(regions, texts[None], dim=-1)


def inputs(images=5, texts=4, length=12, width=7, dtype=torch.float64, seed=0):
    """Pixels, texts, and which text is each image's own: some have the same, some texts are nobody's."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, length, width, generator=generator, dtype=dtype).requires_grad_()
    own = torch.randint(texts, (images,), generator=generator)
    return pixels, torch.randn(texts, width, generator=generator, dtype=dtype).requires_grad_(), own


def values_and_gradients(function, pixels, texts, own, *tops, seed=1):
    """What is mined, and the gradients of a random combination of all of it by pixels and by texts."""
    found = function(pixels, texts, own, *tops)
    generator = torch.Generator().manual_seed(seed)
    pulls = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype) for value in found]
    total = sum((value * pull).sum() for value, pull in zip(found, pulls, strict=True))
    return *found, *torch.autograd.grad(total, (pixels, texts))


@pytest.mark.parametrize("tops", [(5, 2, 3), (1, 1, 1), (12, 12, 12), (3, 3, 1)])
@pytest.mark.parametrize("entries", [1, 2 * 12 * 7, 1 << 20])  # an image at a time, two (the last chunk holds one), all
def test_values_and_gradients_are_those_of_the_equations(monkeypatch, tops, entries):
    monkeypatch.setattr(mining, "ENTRIES", entries)
    for actual, expected in zip(*(values_and_gradients(f, *inputs(), *tops) for f in (mining.mine, plain)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_float32_agrees_to_four_digits_at_a_larger_size():
    sizes = dict(images=16, texts=16, length=196, width=64, dtype=torch.float32)
    for actual, expected in zip(*(values_and_gradients(f, *inputs(**sizes), 78, 12, 10) for f in (mining.mine, plain)), strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_gradients_agree_with_finite_differences():
    pixels, texts, own = inputs(images=2, texts=3, length=6, width=4)
    assert torch.autograd.gradcheck(lambda v, t: tuple(mining.mine(v, t, own, 4, 2, 3)), (pixels, texts))


def test_more_texts_than_images_and_the_reverse():
    for images, texts in ((1, 6), (6, 1)):
        sizes = dict(images=images, texts=texts)
        for actual, expected in zip(mining.mine(*inputs(**sizes), 4, 2, 3), plain(*inputs(**sizes), 4, 2, 3), strict=True):
            torch.testing.assert_close(actual, expected)


def test_without_negatives_objects_and_positives_are_the_same():
    with_negatives, without = (mining.mine(*inputs(), 5, 2, top) for top in (3, 0))
    torch.testing.assert_close(without.objects, with_negatives.objects)
    torch.testing.assert_close(without.positive, with_negatives.positive)
    assert not without.peak.any() and not without.region.any()
    gradients = []
    for top in (3, 0):
        pixels, texts, own = inputs()
        found = mining.mine(pixels, texts, own, 5, 2, top)
        gradients.append(torch.autograd.grad((found.objects * 3).sin().sum() + found.positive.sum(), (pixels, texts)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_pixel_that_nothing_selects_gets_no_gradient():
    pixels, texts, own = inputs()
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)
    selected = scores.topk(2, dim=-1).indices.flatten(1), scores[torch.arange(5), own].topk(3, dim=-1).indices
    found = mining.mine(pixels, texts, own, 3, 1, 2)
    (gradient,) = torch.autograd.grad(found.peak.sum() + found.region.sum() + found.objects.sum(), pixels)
    chosen = torch.zeros(pixels.shape[:2], dtype=torch.bool).scatter(1, torch.cat(selected, 1), True)
    assert not chosen.all() and torch.equal(gradient.abs().sum(-1) > 0, chosen)


def test_zero_embeddings_give_zero_and_finite_gradients():
    pixels, texts = torch.zeros(2, 4, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    found = mining.mine(pixels, texts, torch.arange(2), 2, 1, 2)
    gradients = torch.autograd.grad(sum(value.sum() for value in found), (pixels, texts))
    assert not any(value.any() for value in found) and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("length, count", [(64, 8), (64, 3), (64, 9), (63, 3), (8, 1)])
def test_largest_is_topk(length, count):
    scores = torch.randn(3, 5, length, generator=torch.Generator().manual_seed(0))
    for actual, expected in zip(mining.largest(scores, count), scores.topk(count), strict=True):
        assert torch.equal(actual, expected)


def test_spread_is_the_transpose_of_pool():
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(8)]).view(2, 4, 3)
    shapes = {"pixels": (2, 9, 5), "weights": (2, 4, 2, 3), "vectors": (7, 5)}
    v = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    which = torch.randint(7, (2, 4, 2), generator=generator)
    one_way = sum((mining.pool(v["pixels"], index, v["weights"][:, :, n]) * v["vectors"][which[:, :, n]]).sum() for n in range(2))
    torch.testing.assert_close(one_way, (v["pixels"] * mining.spread(v["vectors"], which, v["weights"], index, 9)).sum())


def test_dots_are_those_of_the_selected_pixels():
    generator = torch.Generator().manual_seed(0)
    pixels, vectors = torch.randn(2, 9, 5, generator=generator), torch.randn(2, 4, 5, generator=generator)
    index, weights = torch.randint(9, (2, 4, 3), generator=generator), torch.rand(2, 4, 3, generator=generator)
    regions, found = mining.dots(pixels, index, weights, vectors)
    selected = torch.stack([image[rows] for image, rows in zip(pixels, index, strict=True)])  # 2, 4, 3, 5
    torch.testing.assert_close(found, torch.einsum("itpd,itd->itp", selected, vectors))
    torch.testing.assert_close(mining.dots(pixels, index, weights)[1], torch.einsum("itpd,itd->itp", selected, regions))


def test_selection_in_bfloat16_finds_what_is_clear_and_computes_it_in_full():
    """Pixels far apart in similarity: what bfloat16 selects is right, so all that follows equals the equations'."""
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    strength = torch.stack([1.5 ** torch.randperm(12, generator=generator).double() for _ in range(5 * 3)]).view(5, 3, 12)
    pixels = (strength.transpose(1, 2) @ directions[:3] / 40).requires_grad_()  # 5, 12, 12
    texts, own = directions[:3].clone().requires_grad_(), torch.tensor([0, 1, 2, 0, 1])
    actual = values_and_gradients(lambda *args: mining.mine(*args, selection="bfloat16"), pixels, texts, own, 5, 2, 3)
    for found, expected in zip(actual, values_and_gradients(plain, pixels, texts, own, 5, 2, 3), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_selection_in_bfloat16_is_close_on_random_pixels_and_not_the_same():
    sizes = dict(images=16, texts=16, length=196, width=64, dtype=torch.float32)
    exact, low = (mining.mine(*inputs(**sizes), 78, 12, 10, selection=s) for s in ("float32", "bfloat16"))
    torch.testing.assert_close((exact.objects, exact.positive), (low.objects, low.positive))  # an image's own text: always in full
    for name in ("peak", "region"):
        full, found = getattr(exact, name), getattr(low, name)
        assert (full - found).abs().max() < 0.02 * full.abs().max() and not torch.equal(full, found)


def test_autocast_changes_nothing():
    sizes = dict(images=4, texts=4, length=49, width=64, dtype=torch.float32)
    plain_run = values_and_gradients(mining.mine, *inputs(**sizes), 20, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        low = values_and_gradients(mining.mine, *inputs(**sizes), 20, 3, 5)
    for actual, expected in zip(low, plain_run, strict=True):
        torch.testing.assert_close(actual, expected)
