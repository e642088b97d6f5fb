"""The three losses against the paper's equations written as loops, and hand-computed cases of their parts."""

import math
from itertools import combinations

import pytest
import torch

from ovseg import schema
from ovseg.methods import alignment

B, L, D = 5, 12, 7
LEVELS = ("object", "region", "pixel")
TEXT_IDS = (0, 1, 0, 2, 2)  # images 0 and 2 drew one text, images 3 and 4 another


def mgca(**changes):
    values = dict(
        granularity="+".join(LEVELS), alpha=0.4, beta=0.3, k=0.25, tau=0.07, direction="both", mask_equal_texts=True, selection="float32"
    )
    return schema.Mgca(**{**values, **changes})


def batch(seed):
    """Pixels (B, L, D), texts (B, D), equal where TEXT_IDS are, and the ids."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(B, L, D, generator=generator, dtype=torch.float64)
    texts = torch.randn(B, D, generator=generator, dtype=torch.float64)[list(TEXT_IDS)]
    return pixels, texts, torch.tensor(TEXT_IDS)


def dot(a, b):
    return (a * b).sum()


def cosine(a, b):
    return dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())


def kept_of(share, length):
    return min(length, max(1, int(share * length + 0.5)))


def pooled(pixels, scores, share):
    """Eq. 3-4 in the paper's form: softmax over all pixels, then the mask of the top share, then the weighted sum."""
    order = sorted(range(len(scores)), key=lambda p: -scores[p].item())
    mask = set(order[: kept_of(share, len(scores))])
    denominator = sum(s.exp() for s in scores)
    weighted = [scores[p].exp() / denominator * pixels[p] for p in range(len(scores)) if p in mask]
    return sum(weighted)


def loop_info_nce(logits, ids, settings):
    def one(positive, others):
        return -(positive.exp() / (positive.exp() + sum(o.exp() for o in others))).log()

    n = len(logits)
    negatives = [[j for j in range(n) if j != i and not (settings.mask_equal_texts and ids[i] == ids[j])] for i in range(n)]
    to_text = sum(one(logits[i][i], [logits[i][j] for j in negatives[i]]) for i in range(n)) / n
    to_image = sum(one(logits[j][j], [logits[i][j] for i in negatives[j]]) for j in range(n)) / n
    return {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[settings.direction]


def loop_losses(pixels, texts, ids, settings):
    """Eq. 2-7, one pair of image and text at a time."""
    n, length, width = pixels.shape
    logits = {level: [[None] * n for _ in range(n)] for level in LEVELS}
    for i in range(n):
        similarity = [[dot(v, text) for v in pixels[i]] for text in texts]
        o = pooled(pixels[i], similarity[i], settings.alpha)
        for j in range(n):
            region = o if i == j else pooled(pixels[i], similarity[j], settings.beta)
            ranked = sorted(similarity[j], key=lambda s: -s.item())
            logits["object"][i][j] = cosine(o, texts[j]) / settings.tau
            logits["region"][i][j] = cosine(region, texts[j]) / settings.tau
            logits["pixel"][i][j] = ranked[kept_of(settings.k, length) - 1 if i == j else 0] / math.sqrt(width)
    return {level: loop_info_nce(logits[level], ids, settings) for level in LEVELS}


def assert_losses_are_the_loops(settings, seed):
    pixels, texts, ids = batch(seed)
    variables = (pixels.requires_grad_(), texts.requires_grad_())
    expected = loop_losses(pixels, texts, ids.tolist(), settings)
    gradients = {level: torch.autograd.grad(expected[level], variables, retain_graph=True) for level in LEVELS}
    for levels in (c for size in (1, 2, 3) for c in combinations(LEVELS, size)):
        actual = alignment.losses(pixels, texts, ids, settings.model_copy(update={"granularity": "+".join(levels)}))
        assert set(actual) == set(levels)
        for level in levels:
            torch.testing.assert_close(actual[level], expected[level], rtol=1e-9, atol=0)
        found = torch.autograd.grad(sum(actual.values()), variables)
        for gradient, *parts in zip(found, *(gradients[level] for level in levels), strict=True):
            torch.testing.assert_close(gradient, sum(parts), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mask_equal_texts", [True, False])
@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image", "both"])
def test_losses_and_gradients_are_those_of_the_equations(direction, mask_equal_texts):
    assert_losses_are_the_loops(mgca(direction=direction, mask_equal_texts=mask_equal_texts), seed=0)


@pytest.mark.parametrize(("alpha", "beta", "k"), [(1.0, 0.05, 0.0), (0.4, 1.0, 0.4), (0.01, 0.5, 0.01)])
def test_losses_are_those_of_the_equations_at_extreme_shares(alpha, beta, k):
    assert_losses_are_the_loops(mgca(alpha=alpha, beta=beta, k=k), seed=1)


def test_masking_equal_texts_changes_the_losses_of_a_batch_that_has_some():
    masked, counted = (alignment.losses(*batch(0), mgca(mask_equal_texts=mask)) for mask in (True, False))
    for level in LEVELS:
        assert masked[level] < counted[level]  # fewer negatives, the same positives


def test_a_batch_of_one_text_has_nothing_to_contrast():
    pixels, texts, _ = batch(0)
    pixels.requires_grad_()
    total = sum(alignment.losses(pixels, texts[:1].expand(B, -1), torch.zeros(B, dtype=torch.long), mgca()).values())
    (gradient,) = torch.autograd.grad(total, pixels)
    assert total == 0 and torch.equal(gradient, torch.zeros_like(pixels))


def test_order_of_the_batch_and_of_the_pixels_does_not_matter():
    pixels, texts, ids = batch(0)
    images, places = torch.tensor([3, 0, 4, 1, 2]), torch.randperm(L, generator=torch.Generator().manual_seed(0))
    expected = alignment.losses(pixels, texts, ids, mgca())
    actual = alignment.losses(pixels[images][:, places], texts[images], ids[images], mgca())
    for level in LEVELS:
        torch.testing.assert_close(actual[level], expected[level], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("share", "length", "expected"),
    [(0.4, 784, 314), (0.05, 784, 39), (0.06, 784, 47), (0.25, 10, 3), (0.35, 10, 4), (0.24, 10, 2)]  # 313.6, 39.2, 47.04, 2.5, 3.5, 2.4
    + [(0.0, 10, 1), (0.001, 10, 1), (1.0, 10, 10), (0.99, 10, 10), (1 / 784, 784, 1), (0.5, 1, 1)],
)
def test_count_rounds_half_up_between_one_and_all(share, length, expected):
    assert alignment.top_count(share, length) == expected


def test_semi_hard_goes_from_the_best_pixel_to_the_last_one_of_the_object():
    scores = torch.tensor([[0.3, 9.0, -1.0, 4.0, 7.0, 0.0, 5.0, 2.0, -3.0, 1.0]])
    for k, value, index in [(1 / 10, 9.0, 1), (0.2, 7.0, 4), (0.3, 5.0, 6), (0.4, 4.0, 3), (1.0, -3.0, 8), (0.0, 9.0, 1)]:
        values, indices = alignment.semi_hard(scores, k)
        assert (values.item(), indices.item()) == (value, index)
    mask = alignment.object_mask(scores, 0.4)
    assert mask.nonzero()[:, 1].tolist() == [1, 3, 4, 6]
    assert alignment.semi_hard(scores, 0.4)[0] == scores[mask].min()


def test_exactly_the_share_of_pixels_is_kept_when_all_are_tied():
    assert alignment.object_mask(torch.ones(2, 3, L), 0.4).sum(-1).tolist() == [[5] * 3] * 2


def test_ties_at_the_border_leave_the_better_pixels_in():
    scores = torch.tensor([1.0, 5.0, 1.0, 1.0, 6.0, 0.0])
    mask = alignment.object_mask(scores, 0.5)
    assert mask.sum() == 3 and mask[1] and mask[4] and not mask[5]


def test_losses_stay_finite_at_similarities_beyond_the_range_of_exp():
    pixels, texts, ids = batch(0)
    found = alignment.losses(300 * pixels.float(), 10 * texts.float(), ids, mgca())
    assert all(value.isfinite() for value in found.values())


OFF_DIAGONAL = ~torch.eye(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("direction", "shares"),
    [("image-to-text", [3 / 4, 2 / 4]), ("text-to-image", [3 / 5, 2 / 3]), ("both", [3 / 4, 2 / 4, 3 / 5, 2 / 3])],
)
def test_info_nce_of_two_by_two(direction, shares):
    logits = torch.tensor([[3.0, 1.0], [2.0, 2.0]]).log()
    expected = -sum(math.log(s) for s in shares) / len(shares)
    assert alignment.info_nce(logits, OFF_DIAGONAL[:2, :2], direction).item() == pytest.approx(expected)


def test_info_nce_of_three_by_three_leaves_out_what_is_no_negative():
    logits = torch.tensor([[4.0, 1.0, 3.0], [2.0, 2.0, 5.0], [1.0, 1.0, 1.0]]).log()
    negative = OFF_DIAGONAL.clone()
    negative[0, 2] = negative[2, 0] = False
    rows, columns = [4 / 5, 2 / 9, 1 / 2], [4 / 7, 2 / 4, 1 / 6]
    columns[0] = 4 / 6  # 4 + 2; the 1 below is left out
    for direction, shares in [("image-to-text", rows), ("text-to-image", columns), ("both", rows + columns)]:
        expected = -sum(math.log(s) for s in shares) / len(shares)
        assert alignment.info_nce(logits, negative, direction).item() == pytest.approx(expected)


def test_what_is_no_negative_gets_no_gradient_and_the_positive_counts_in_any_case():
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    negative = OFF_DIAGONAL.clone()
    negative[0, 2] = negative[2, 0] = False
    (gradient,) = torch.autograd.grad(alignment.info_nce(logits, negative), logits)
    assert torch.equal(gradient != 0, negative | ~OFF_DIAGONAL)


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
    found = alignment.correspondences(pixels, texts, torch.tensor([0, 1, 2, 0]), mgca(alpha=0.5, beta=0.25, k=0.5))
    assert found["similarity"].tolist() == [[5, 3, 0, 0], [1, 0, 2, 0], [0, 1, 0, 3], [1, 0, 2, 0]]
    assert [m.nonzero().flatten().tolist() for m in found["object"]] == [[0, 1], [0, 2], [1, 3], [0, 2]]
    assert found["positive"].tolist() == [1, 0, 1, 0]  # rank 2 of 4: the object's lowest
    assert found["negative"][[0, 1, 3]].tolist() == [2, 0, 2]
    assert found["negative"][2] in (0, 3)  # one text, drawn for both
    assert [m.nonzero().flatten().tolist() for m in found["region"]] == [[3], [1], [0], [1]]
