"""MGCA's losses and their gradients against the paper's equations; mining by itself; cases computed by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import CAPTIONS, WIDTH, P, make_pairs

from ovseg.data.captions import nouns
from ovseg.methods import mgca as method
from ovseg.methods import mining
from ovseg.training.decoder import Decoder
from ovseg.training.objectives import info_nce, negatives

L, D = 12, 7
LEVELS = ("object", "region", "pixel")
SUBJECTS = (0, 1, 0, 2, 2)  # images 0 and 2 drew one text, images 3 and 4 another


def mgca(**changes):
    values = {"granularity": "+".join(LEVELS), "alpha": 0.4, "beta": 0.3, "k": 0.25, "tau": 0.07, "direction": "both"}
    return method.Settings(**values | changes)


def negative_pairs(subjects, mask):
    """All other texts, without those of the same subject if mask."""
    return torch.tensor([[a != b if mask else i != j for j, b in enumerate(subjects)] for i, a in enumerate(subjects)])


def batch(subjects=SUBJECTS, length=L, width=D, dtype=torch.float64, mask=True, seed=0):
    """Pixels (B, length, width), texts (B, width), equal where subjects are, and which pairs are negatives (B, B)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(subjects), length, width, generator=generator, dtype=dtype).requires_grad_()
    texts = torch.randn(len(subjects), width, generator=generator, dtype=dtype)
    return pixels, texts[list(subjects)], negative_pairs(subjects, mask)


# ---- the equations as they are written, with all similarities and regions in full


def count(share, length):
    return min(length, max(1, int(share * length + 0.5)))


def pooled(pixels, scores, share):
    """Eq. 3-4: softmax over all pixels, the mask of the top share, the weighted sum. pixels (B, L, d), scores (B, B, L) -> (B, B, d)."""
    mask = scores.argsort(-1, descending=True).argsort(-1) < count(share, scores.shape[-1])
    return torch.einsum("ijp,ipd->ijd", scores.softmax(-1) * mask, pixels)


def plain_losses(pixels, texts, negative, settings):
    length, width = pixels.shape[1:]
    own = torch.eye(len(texts), dtype=torch.bool)
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)  # Eq. 2
    objects, regions = pooled(pixels, scores, settings.alpha)[own][:, None], pooled(pixels, scores, settings.beta)  # B, 1, d; B, B, d
    like_object = F.cosine_similarity(objects, texts, dim=-1) / settings.tau  # B, B
    like_region = F.cosine_similarity(regions, texts, dim=-1) / settings.tau
    ranked = scores.sort(-1, descending=True).values / math.sqrt(width)
    logits = {
        "object": like_object,  # Eq. 5
        "region": torch.where(own, like_object, like_region),  # Eq. 6
        "pixel": torch.where(own, ranked[..., count(settings.k, length) - 1], ranked[..., 0]),  # Eq. 7
    }
    losses = {}
    for level in settings.granularity.split("+"):
        e = logits[level].exp() * (own | negative)
        to_text, to_image = (-(e.diagonal() / e.sum(dim)).log().mean() for dim in (1, 0))
        losses[level] = {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[settings.direction]
    return losses


def check(settings, data, rtol=1e-9):
    """That losses and their gradients are those of the equations."""
    actual, expected = (losses(*data, settings) for losses in (method.losses, plain_losses))
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)
    gradient, wanted = (torch.autograd.grad(sum(levels.values()), data[0])[0] for levels in (actual, expected))
    assert wanted.any() and (gradient - wanted).norm() <= rtol * wanted.norm()


@pytest.mark.parametrize("levels", [c for size in (1, 2, 3) for c in combinations(LEVELS, size)], ids="+".join)
@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image", "both"])
def test_losses_and_gradients_are_those_of_the_equations(levels, direction):
    for seed, mask in enumerate((True, False, True)):
        check(mgca(granularity="+".join(levels), direction=direction), batch(mask=mask, seed=seed))


@pytest.mark.parametrize(("alpha", "beta", "k"), [(1.0, 0.05, 0.0), (0.4, 1.0, 0.4), (0.01, 0.5, 0.01)])
@pytest.mark.parametrize("entries", [1, 2 * L * D, 1 << 20])  # an image at a time, two (the last chunk holds one), all
def test_extreme_shares_and_chunks_change_nothing(monkeypatch, entries, alpha, beta, k):
    monkeypatch.setattr(mining, "ENTRIES", entries)
    check(mgca(alpha=alpha, beta=beta, k=k), batch())


def test_float32_agrees_to_four_digits_at_a_larger_size():
    check(mgca(beta=0.05, k=0.06), batch(subjects=range(16), length=196, width=64, dtype=torch.float32), rtol=1e-4)


def test_degenerate_batches_have_finite_losses_and_gradients():
    pixels, texts, negative = batch()
    large = method.losses(300 * pixels.float(), 10 * texts.float(), negative, mgca())  # beyond the range of exp
    assert all(value.isfinite() for value in large.values())
    assert not any(method.losses(pixels, texts, torch.zeros_like(negative), mgca()).values())  # one subject, no negatives
    zeros = torch.zeros(2, 4, 3, requires_grad=True)
    mined = mining.mine(zeros, torch.zeros(2, 3), torch.arange(2), 2, 1, 2)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in mined), zeros)
    assert not any(value.any() for value in mined) and gradient.isfinite().all()


def test_frozen_texts_get_no_gradient():
    pixels, texts, negative = batch()
    sum(method.losses(pixels, texts.requires_grad_(), negative, mgca()).values()).backward()
    assert texts.grad is None and pixels.grad.any()


def test_top_count_rounds_half_up_between_one_and_all():
    assert [method.top_count(share, 784) for share in (0.4, 0.05)] == [314, 39]  # 313.6, 39.2
    assert [method.top_count(share, 10) for share in (0.25, 0.35, 0.24, 0.0, 0.001, 1.0, 0.99)] == [3, 4, 2, 1, 1, 10, 10]


def test_info_nce_by_hand_leaves_out_pairs_that_are_not_negatives():
    logits = torch.tensor([[4.0, 1.0, 3.0], [2.0, 2.0, 5.0], [1.0, 1.0, 1.0]]).log().requires_grad_()
    negative = torch.tensor([[False, True, False], [True, False, True], [False, True, False]])
    rows, columns = [4 / 5, 2 / 9, 1 / 2], [4 / 6, 2 / 4, 1 / 6]
    for direction, shares in [("image-to-text", rows), ("text-to-image", columns), ("both", rows + columns)]:
        loss = info_nce(logits, negative, direction)
        assert loss.item() == pytest.approx(-sum(math.log(s) for s in shares) / len(shares))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient != 0, negative | torch.eye(3, dtype=torch.bool))
    for mask in (True, False):
        assert torch.equal(negatives(torch.tensor(SUBJECTS), mask), negative_pairs(SUBJECTS, mask))


# ---- mining


def test_gradients_agree_with_finite_differences():
    pixels, texts, _ = batch(range(3), length=6, width=4)
    assert torch.autograd.gradcheck(lambda v: tuple(mining.mine(v, texts, torch.arange(3), 4, 2, 3)), pixels)


def test_only_selected_pixels_get_a_gradient_and_a_share_of_images_mines_the_same():
    (pixels, texts, _), own = batch(), torch.arange(5)
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)
    selected = scores.topk(2, dim=-1).indices.flatten(1), scores[own, own].topk(3, dim=-1).indices
    mined = mining.mine(pixels, texts, own, 3, 1, 2)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in mined), pixels)
    chosen = torch.zeros(pixels.shape[:2], dtype=torch.bool).scatter(1, torch.cat(selected, 1), True)
    assert not chosen.all() and torch.equal(gradient.abs().sum(-1) > 0, chosen)
    for part, whole in zip(mining.mine(pixels[3:], texts, own[3:], 3, 1, 2), mined, strict=True):
        torch.testing.assert_close(part, whole[3:])


@pytest.mark.parametrize("length, size", [(64, 8), (64, 3), (64, 9), (63, 3), (8, 1)])
def test_largest_is_topk(length, size):
    scores = torch.randn(3, 5, length, generator=torch.Generator().manual_seed(0))
    assert all(map(torch.equal, mining.largest(scores, size), scores.topk(size)))


def test_autocast_changes_nothing():
    results = []
    for enabled in (False, True):
        pixels, texts, _ = batch(range(4), length=49, width=64, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mined = mining.mine(pixels, texts, torch.arange(4), 20, 3, 5)
            results.append((*mined, *torch.autograd.grad(sum(value.sum() for value in mined), pixels)))
    torch.testing.assert_close(*results)


# ---- what is shown


def test_correspondences_by_hand():
    texts = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])  # the last image drew the first one's text
    images = [
        [[5.0, 0, 0], [3.0, 0, 1], [0, 2.0, 2], [0, 0, 4.0]],  # its own text fits best, twice in the batch; then text 2 in pixel 3
        [[0, 1.0, 0], [4.0, 0, 3.0], [0, 2.0, 0], [0, 0, 0.0]],  # text 0 in pixel 1 (cosine 0.8) before text 2 in pixel 1 (0.6)
        [[9.0, 8.0, 0], [0, 0, 1.0], [0, 1.0, 0], [0, 0, 3.0]],  # text 0 in pixel 0 (0.75) before text 1 in pixel 0 (0.66)
        [[1.0, 0, 0], [0, 3.0, 4.0], [2.0, 0, 0], [0, 0, 0.0]],  # text 2 in pixel 1 (0.8) before text 1 (0.6)
    ]
    pixels = torch.tensor(images)
    selected = method.correspondences(pixels, texts, negatives(torch.tensor([0, 1, 2, 0]), True), mgca(alpha=0.5, beta=0.25, k=0.5))
    assert selected["similarity"].tolist() == [[5, 3, 0, 0], [1, 0, 2, 0], [0, 1, 0, 3], [1, 0, 2, 0]]
    assert [m.nonzero().flatten().tolist() for m in selected["object"]] == [[0, 1], [0, 2], [1, 3], [0, 2]]
    assert selected["positive"].tolist() == [1, 0, 1, 0]  # rank 2 of 4: the object's lowest
    assert selected["negative"][[0, 1, 3]].tolist() == [2, 0, 2] and selected["negative"][2] in (0, 3)  # one text, drawn for both
    assert [m.nonzero().flatten().tolist() for m in selected["region"]] == [[3], [1], [0], [1]]


def test_explain_draws_prompts_of_the_first_pairs():
    pairs = make_pairs()
    drawn, maps = method.explain(Decoder(WIDTH).eval(), pairs, P, count=5)
    assert len(drawn) == 5
    for row, text in enumerate(drawn):
        prompts = [template.format(noun) for noun in nouns(CAPTIONS[row]) for template in pairs.bank.templates]
        assert text in (prompts or [CAPTIONS[row]])
    assert maps["object"].shape == maps["similarity"].shape == maps["region"].shape == (5, 8, 8)
    # an untrained decoder repeats each of the 4x4 features, and similarity is the plain product with the text
    text = pairs.texts[list(pairs.bank.texts).index(drawn[2])].astype(np.float32)
    expected = np.einsum("dhw,d->hw", pairs.images.array[2].astype(np.float32), text).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(maps["similarity"][2], expected, rtol=1e-5, atol=1e-5)
