"""The three losses against the paper's equations, and hand-computed cases of their parts."""

import math
from itertools import combinations

import pytest
import reference
import torch

from ovseg import schema
from ovseg.methods import contrast, mining
from ovseg.methods import mgca as method

B, L, D = 5, 12, 7
LEVELS = ("object", "region", "pixel")
SUBJECTS = (0, 1, 0, 2, 2)  # images 0 and 2 drew one text, images 3 and 4 another
NEGATIVE = {  # by the definition: others, those of the same subject left out or not
    True: lambda subjects: torch.tensor([[a != b for b in subjects] for a in subjects]),
    False: lambda subjects: torch.tensor([[i != j for j in range(len(subjects))] for i in range(len(subjects))]),
}


def mgca(**changes):
    values = {"granularity": "+".join(LEVELS), "alpha": 0.4, "beta": 0.3, "k": 0.25, "tau": 0.07}
    return schema.Mgca(**values | {"direction": "both", "selection": "float32"} | changes)


def batch(seed=0, subjects=SUBJECTS, length=L, width=D, dtype=torch.float64, mask=True):
    """Pixels (B, length, width), texts (B, width), equal where subjects are, and which pairs are negatives (B, B)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(subjects), length, width, generator=generator, dtype=dtype).requires_grad_()
    texts = torch.randn(len(subjects), width, generator=generator, dtype=dtype)
    return pixels, texts[list(subjects)], NEGATIVE[mask](torch.tensor(subjects))


def check(settings, data, rtol=1e-9):
    """That losses and their gradients by the pixels are the reference's."""
    found, expected = (losses(*data, settings) for losses in (method.losses, reference.losses))
    assert set(found) == set(expected) == set(settings.levels)
    for level in found:
        torch.testing.assert_close(found[level], expected[level], rtol=rtol, atol=0)
    gradient, wanted = (torch.autograd.grad(sum(levels.values()), data[0])[0] for levels in (found, expected))
    assert wanted.any() and (gradient - wanted).norm() <= rtol * wanted.norm()


@pytest.mark.parametrize("levels", [c for size in (1, 2, 3) for c in combinations(LEVELS, size)], ids="+".join)
@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image", "both"])
@pytest.mark.parametrize("mask", [True, False])
def test_losses_and_gradients_are_those_of_the_equations(levels, direction, mask):
    check(mgca(granularity="+".join(levels), direction=direction), batch(mask=mask))


@pytest.mark.parametrize(("alpha", "beta", "k"), [(1.0, 0.05, 0.0), (0.4, 1.0, 0.4), (0.01, 0.5, 0.01)])
@pytest.mark.parametrize("entries", [1, 2 * L * D, 1 << 20])  # an image at a time, two (the last chunk holds one), all
def test_they_are_at_extreme_shares_however_the_batch_is_cut(monkeypatch, entries, alpha, beta, k):
    monkeypatch.setattr(mining, "ENTRIES", entries)
    check(mgca(alpha=alpha, beta=beta, k=k), batch(seed=1))


def test_they_are_to_four_digits_in_float32_at_a_larger_size():
    check(mgca(beta=0.05, k=0.06), batch(subjects=range(16), length=196, width=64, dtype=torch.float32), rtol=1e-4)


def test_selection_in_bfloat16_finds_what_is_clear_and_computes_it_in_full():
    """Pixels far apart in similarity: what bfloat16 selects is right, so all that follows equals the equations'."""
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    strength = torch.stack([1.5 ** torch.randperm(12, generator=generator).double() for _ in range(5 * 5)]).view(5, 5, 12)
    pixels = (strength.transpose(1, 2) @ directions[:5] / 40).requires_grad_()  # 5, 12, 12
    check(mgca(selection="bfloat16"), (pixels, directions[:5], ~torch.eye(5, dtype=torch.bool)))


def test_a_batch_of_one_text_has_nothing_to_contrast():
    pixels, texts, _ = batch()
    total = sum(method.losses(pixels, texts[:1].expand(B, -1), torch.zeros(B, B, dtype=torch.bool), mgca()).values())
    (gradient,) = torch.autograd.grad(total, pixels)
    assert total == 0 and not gradient.any()


def test_losses_stay_finite_at_similarities_beyond_the_range_of_exp():
    pixels, texts, negative = batch(dtype=torch.float32)
    assert all(value.isfinite() for value in method.losses(300 * pixels, 10 * texts, negative, mgca()).values())


def test_frozen_texts_get_no_gradient():
    pixels, texts, negative = batch()
    texts.requires_grad_()
    sum(method.losses(pixels, texts, negative, mgca()).values()).backward()
    assert texts.grad is None and pixels.grad.any()


@pytest.mark.parametrize(
    ("share", "length", "expected"),
    [(0.4, 784, 314), (0.05, 784, 39), (0.06, 784, 47), (0.25, 10, 3), (0.35, 10, 4), (0.24, 10, 2)]  # 313.6, 39.2, 47.04, 2.5, 3.5, 2.4
    + [(0.0, 10, 1), (0.001, 10, 1), (1.0, 10, 10), (0.99, 10, 10), (1 / 784, 784, 1), (0.5, 1, 1)],
)
def test_count_rounds_half_up_between_one_and_all(share, length, expected):
    assert method.top_count(share, length) == expected


def test_info_nce_of_a_case_made_by_hand_leaves_out_what_is_no_negative():
    logits = torch.tensor([[4.0, 1.0, 3.0], [2.0, 2.0, 5.0], [1.0, 1.0, 1.0]]).log().requires_grad_()
    negative = torch.tensor([[False, True, False], [True, False, True], [False, True, False]])
    rows, columns = [4 / 5, 2 / 9, 1 / 2], [4 / 6, 2 / 4, 1 / 6]
    for direction, shares in [("image-to-text", rows), ("text-to-image", columns), ("both", rows + columns)]:
        found = contrast.info_nce(logits, negative, direction)
        assert found.item() == pytest.approx(-sum(math.log(s) for s in shares) / len(shares))
        (gradient,) = torch.autograd.grad(found, logits)
        assert torch.equal(gradient != 0, negative | torch.eye(3, dtype=torch.bool))


def test_correspondences_of_a_case_made_by_hand():
    texts = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])  # the last image drew the first one's text
    pixels = torch.tensor(
        [
            [[5.0, 0, 0], [3.0, 0, 1], [0, 2.0, 2], [0, 0, 4.0]],  # its own text fits best, twice in the batch; then text 2 in pixel 3
            [[0, 1.0, 0], [4.0, 0, 3.0], [0, 2.0, 0], [0, 0, 0.0]],  # text 0 in pixel 1 (cosine 0.8) before text 2 in pixel 1 (0.6)
            [[9.0, 8.0, 0], [0, 0, 1.0], [0, 1.0, 0], [0, 0, 3.0]],  # text 0 in pixel 0 (0.75) before text 1 in pixel 0 (0.66)
            [[1.0, 0, 0], [0, 3.0, 4.0], [2.0, 0, 0], [0, 0, 0.0]],  # text 2 in pixel 1 (0.8) before text 1 (0.6)
        ]
    )
    found = method.correspondences(pixels, texts, contrast.negatives(torch.tensor([0, 1, 2, 0]), True), mgca(alpha=0.5, beta=0.25, k=0.5))
    assert found["similarity"].tolist() == [[5, 3, 0, 0], [1, 0, 2, 0], [0, 1, 0, 3], [1, 0, 2, 0]]
    assert [m.nonzero().flatten().tolist() for m in found["object"]] == [[0, 1], [0, 2], [1, 3], [0, 2]]
    assert found["positive"].tolist() == [1, 0, 1, 0]  # rank 2 of 4: the object's lowest
    assert found["negative"][[0, 1, 3]].tolist() == [2, 0, 2]
    assert found["negative"][2] in (0, 3)  # one text, drawn for both
    assert [m.nonzero().flatten().tolist() for m in found["region"]] == [[3], [1], [0], [1]]


@pytest.mark.parametrize("mask", [True, False])
def test_negatives_are_the_others_of_another_subject(mask):
    subjects = torch.tensor(SUBJECTS)
    assert torch.equal(contrast.negatives(subjects, mask), NEGATIVE[mask](subjects))
