"""MixReorg: how patches are mixed, its losses by loops, and its parts."""

import numpy as np
import pytest
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import mixreorg


def losses(batch, stages, decoder, **changes):
    batch = batch._replace(random=np.random.default_rng(0))
    return mixreorg.Objective(P.mixreorg.model_copy(update={"tau": 0.3, "images": 2} | changes), 6)(batch, stages, decoder)


@pytest.mark.parametrize(("images", "patch"), [(2, 1), (4, 1), (8, 1), (4, 2), (4, 3)])
def test_each_set_of_images_permutes_its_patches_at_each_position(images, patch):
    source = mixreorg.deal(np.random.default_rng(0), 8, images, 4, 5, patch)
    for first in range(0, 8, images):
        assert (np.sort(source[first : first + images], 0) == np.arange(first, first + images)[:, None, None]).all()
    for y, x in np.ndindex(4, 5):  # cells of patch x patch are moved as a whole
        assert (source[:, y, x] == source[:, y // patch * patch, x // patch * patch]).all()
    assert len({source[:, y, x].tobytes() for y, x in np.ndindex(4, 5)}) > 1


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("block", [None, 2])
def test_losses_are_those_of_the_equations(progressive, block):
    batch, stages, decoder = batch_of(images=4, side=2, subjects=[0, 1, 0, 2])
    source = mixreorg.deal(np.random.default_rng(0), 4, 2, 2, 2, 1)  # as the batch draws it: images 0 and 1, 2 and 3
    mixed = torch.stack([torch.stack([batch.dense[source[i, y, x], :, y, x] for y, x in np.ndindex(2, 2)], -1) for i in range(4)])
    mixed = mixed.unflatten(2, (2, 2))

    def encode(mixing):
        """In place of a CLIP that mixes the patches itself."""
        assert mixing[0] == block and np.array_equal(mixing[1], source)
        return mixed

    x = mixed.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for layer, stage in zip(decoder.blocks, stages[1:], strict=True):
        x = layer(x)
        if progressive:
            guide = torch.zeros_like(x)
            for i, y, column in np.ndindex(4, 4, 4):
                guide[i, :, y, column] = stage[source[i, y // 2, column // 2], :, y, column]
            x = (x + guide) / 2
    total, restored = 0.0, torch.zeros_like(x)
    for i, y, column in np.ndindex(4, 4, 4):
        right = source[i, y // 2, column // 2]
        restored[right, :, y, column] = x[i, :, y, column]
        in_set = range(i // 2 * 2, i // 2 * 2 + 2)
        scores = {j: (cosine(x[i, :, y, column], batch.texts[j]) / 0.3).exp() for j in in_set}
        total = total - (scores[right] / sum(scores.values())).log() / (4 * 16)
    batch = batch._replace(encode=encode)
    actual = losses(batch, stages, decoder, progressive=progressive, block=block)
    torch.testing.assert_close(actual["mixed"], total)
    for name, maps in (("original", stages[-1]), ("restored", restored)):
        logits = torch.stack([torch.stack([cosine(of_image.mean((1, 2)), text) / 0.3 for text in batch.texts]) for of_image in maps])
        torch.testing.assert_close(actual[name], info_nce_by_loops(logits, batch.negative))
    part = losses(batch, stages, decoder, progressive=progressive, block=block, restoration=False, weight=3.0)
    assert set(part) == {"mixed", "original"}
    for name in part:
        torch.testing.assert_close(part[name], 3 * actual[name])


def test_texts_of_one_subject_are_not_contrasted():
    assert losses(*batch_of(images=4, subjects=[0, 0, 1, 1]))["mixed"].item() == pytest.approx(0, abs=1e-12)  # one subject in each set


def test_images_that_do_not_fill_a_set_are_rejected():
    with pytest.raises(ValueError, match=r"train.batch: 6 images in a process, must be a multiple of 4 \(mixreorg.images\)"):
        losses(*batch_of(images=6), images=4)
