"""PAMR against its published formula, and what it does to scores."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import changed

from ovseg import Segmenter
from ovseg.segmentation.refinement import pamr
from ovseg.segmentation.windows import window_grid


def published(image, masks):
    """PAMR as released, with 10 iterations and TCL's dilations: (1, 3, H, W) and (1, C, H, W) -> (1, C, H, W). Holds all copies at once."""

    def shifted(x, centre=False):  # 1, C, neighbours, H, W
        kernel = torch.eye(9, dtype=x.dtype).view(9, 1, 3, 3)[[i for i in range(9) if centre or i != 4]]
        copies = [F.conv2d(F.pad(x.transpose(0, 1), [d] * 4, mode="replicate"), kernel, dilation=d) for d in (1, 2, 4, 8, 12, 24)]
        return torch.cat(copies, 1)[None]

    weights = -(image[:, :, None] - shifted(image)).abs() / (1e-8 + 0.1 * shifted(image, centre=True).std(2, keepdim=True))
    weights = weights.mean(1, keepdim=True).softmax(2)
    for _ in range(10):
        masks = (shifted(masks) * weights).sum(2)
    return masks


@pytest.mark.parametrize(("height", "width", "classes"), [(70, 61, 40), (5, 30, 3), (1, 1, 2)])
def test_pamr_equals_the_published_formula_for_any_number_of_pixels_and_classes(height, width, classes):
    generator = torch.Generator().manual_seed(height)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    pixels[: height // 2] //= 64  # a dark half, with few distinct colours
    scores = torch.randn(classes, height, width, generator=generator)
    image = (pixels.double() - 110) / 70  # TCL normalises colours, which changes nothing
    expected = published(image.permute(2, 0, 1)[None], scores[None].double())[0].float()
    torch.testing.assert_close(pamr(pixels.numpy(), scores), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("side", [32, 160, 20])
def test_refined_scores_follow_the_edges_of_the_image(clip, decoder, side):
    """A picture larger than short_side is refined at that size, a smaller one at its own."""
    pixels, edge = np.random.default_rng(0).integers(0, 20, (side, side, 3), np.uint8), side * 7 // 16
    pixels[:, :edge, 0], pixels[:, edge:, 2] = 200, 200  # red and blue, with a border that is none of patches
    plain = Segmenter(clip, decoder, changed(short_side=64, window=64))
    halves = torch.eye(2, clip.width).T[None, :, None].expand(-1, -1, 2, -1)  # embeddings of a left and a right patch
    arguments = halves, window_grid(side, side, plain.settings), torch.eye(2, clip.width), (side, side), Image.fromarray(pixels)
    before, after = (segmenter.classify(*arguments) for segmenter in (plain, plain.with_unit("pixel", refine="pamr")))
    truth = torch.arange(side).expand(side, -1) >= edge
    wrong = [(scores.labels() != truth).float().mean() for scores in (before, after)]
    assert wrong[0] > 0.04 and wrong[1] < 0.02 and after.mosaic.shape[1:] == (min(side, 64), min(side, 64))
