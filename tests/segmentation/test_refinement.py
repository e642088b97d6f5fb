"""PAMR against its published formula, and what it does to segmentations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import changed

from ovseg import Segmenter
from ovseg.segmentation import refinement
from ovseg.segmentation.windows import to_labels, window_grid


def published(image, masks):
    """PAMR(num_iter=10, dilations=[1, 2, 4, 8, 12, 24]) as released: shifted copies of (B, 3, H, W) and (B, C, H, W), all at once."""

    def shifted(x, centre):
        kernel = torch.eye(9, dtype=x.dtype).view(9, 1, 3, 3)[[i for i in range(9) if centre or i != 4]]
        flat = x.flatten(0, 1)[:, None]
        copies = [F.conv2d(F.pad(flat, [d] * 4, mode="replicate"), kernel, dilation=d) for d in (1, 2, 4, 8, 12, 24)]
        return torch.cat(copies, 1).unflatten(0, x.shape[:2])  # B, C, neighbours, H, W

    deviation = shifted(image, True).std(2, keepdim=True)
    difference = (image[:, :, None] - shifted(image, False)).abs()
    weights = (-difference / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True).softmax(2)
    for _ in range(10):
        masks = (shifted(masks, False) * weights).sum(2)
    return masks


@pytest.mark.parametrize(("height", "width", "classes"), [(70, 61, 40), (5, 30, 3), (1, 1, 2)])
def test_pamr_equals_the_published_formula_for_any_number_of_pixels_and_classes(height, width, classes):
    generator = torch.Generator().manual_seed(height)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    pixels[: height // 2] //= 16  # a dark half, with few distinct colours
    scores = torch.randn(classes, height, width, generator=generator)
    mean, spread = torch.tensor([[0.48, 0.46, 0.41], [0.27, 0.26, 0.28]])  # TCL normalises colours, which changes nothing
    image = ((pixels / 255 - mean) / spread).permute(2, 0, 1)[None].double()
    result = refinement.pamr(pixels, scores)
    assert result.dtype == torch.float32 and result.shape == scores.shape
    torch.testing.assert_close(result, published(image, scores[None].double())[0].float(), rtol=1e-4, atol=1e-5)


def two_halves(height, width):
    """A red and a blue half, whose border is no border of patches."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width * 7 // 16, 0] = image[:, width * 7 // 16 :, 2] = 200
    return image + np.random.default_rng(0).integers(0, 20, image.shape, np.uint8)


@pytest.mark.parametrize("side", [32, 160, 20])
def test_refined_scores_follow_the_edges_of_the_image(clip, decoder, side):
    """The scores of a coarse grid; a picture larger than short_side is refined at that size, a smaller one at its own."""
    segmenter = Segmenter(clip, decoder, changed(short_side=64, window=64))
    image, refining = Image.fromarray(two_halves(side, side)), segmenter.with_unit("pixel", refine="pamr")
    windows, where = torch.zeros(1, clip.width, 2, 2), window_grid(side, side, segmenter.settings)
    windows[0, 0, :, 0], windows[0, 1, :, 1] = 1, 1  # the left and the right patch
    classes = torch.eye(2, clip.width)
    before, after = (s.classify(windows, where, classes, (side, side), image) for s in (segmenter, refining))
    truth = torch.arange(side).expand(side, -1) >= side * 7 // 16
    wrong = [(scores.labels() != truth).float().mean().item() for scores in (before, after)]
    assert wrong[0] > 0.03 and wrong[1] < 0.02
    assert (len(after.mosaic[0]), len(before.mosaic[0])) == (min(side, 64), 2)
    assert torch.equal(after.labels(14.3, 0.6), to_labels(after.rows(), 14.3, 0.6)) and after.rows().amax() <= before.rows().amax() + 1e-6


def test_a_segmenter_refines_before_it_labels_if_its_settings_say_so(clip, decoder):
    image, names = two_halves(32, 38), ["cat", "sofa"]  # no smaller than what is cut into windows
    plain, refining = (Segmenter(clip, decoder, changed(refine=refine)).segment(image, names, True, 0.5) for refine in (None, "pamr"))
    expected = refinement.pamr(torch.tensor(image), torch.tensor(plain.scores)).numpy()
    np.testing.assert_allclose(refining.scores, expected, atol=1e-6)
    assert np.abs(expected - plain.scores).max() > 1e-3
    assert np.array_equal(refining.labels, to_labels(torch.tensor(refining.scores), changed().scale, 0.5))
