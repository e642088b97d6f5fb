"""MixReorg: patches are dealt out, not lost; its losses by loops; each part of it by itself."""

import numpy as np
import pytest
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import mixreorg


def settings(**changes):
    return P.mixreorg.model_copy(update={"tau": 0.3, "weight": 1.0} | changes)


@pytest.mark.parametrize(("images", "patch"), [(2, 1), (4, 1), (8, 1), (4, 2), (4, 3)])
def test_each_set_of_images_deals_out_each_of_its_patches_once_at_its_place(images, patch):
    source = mixreorg.deal(np.random.default_rng(0), 8, images, 4, 5, patch)
    assert source.shape == (8, 4, 5)
    for first in range(0, 8, images):
        assert (np.sort(source[first : first + images], 0) == np.arange(first, first + images)[:, None, None]).all()
    for y, x in np.ndindex(4, 5):  # cells of patch x patch are dealt out whole
        assert (source[:, y, x] == source[:, y // patch * patch, x // patch * patch]).all()
    assert len({source[:, y, x].tobytes() for y, x in np.ndindex(4, 5)}) > 1


def test_mixing_takes_each_patch_from_its_source_and_restoration_puts_it_back():
    maps = torch.randn(8, 3, 4, 5)
    source = torch.from_numpy(mixreorg.deal(np.random.default_rng(1), 8, 4, 4, 5, 1))
    mixed = mixreorg.mix(maps, source)
    for i, y, x in np.ndindex(8, 4, 5):
        assert torch.equal(mixed[i, :, y, x], maps[source[i, y, x], :, y, x])
    assert not torch.equal(mixed, maps)
    assert torch.equal(mixreorg.mix(mixed, mixreorg.restore(source, 4)), maps)


@pytest.mark.parametrize("progressive", [True, False])
def test_losses_are_those_of_the_equations(progressive):
    batch, stages, decoder = batch_of(images=4, side=2, subjects=[0, 1, 0, 2])
    source = mixreorg.deal(np.random.default_rng(0), 4, 2, 2, 2, 1)  # as the batch draws it: images 0 and 1, 2 and 3
    mixed = torch.stack([torch.stack([batch.dense[source[i, y, x], :, y, x] for y, x in np.ndindex(2, 2)], -1) for i in range(4)])
    x = mixed.unflatten(2, (2, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for block, stage in zip(decoder.blocks, stages[1:], strict=True):
        x = block(x)
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
    found = mixreorg.Objective(settings(images=2, progressive=progressive), 6)(batch, stages, decoder)
    torch.testing.assert_close(found["mixed"], total)
    for name, maps in (("original", stages[-1]), ("restored", restored)):
        logits = torch.stack([torch.stack([cosine(of_image.mean((1, 2)), text) / 0.3 for text in batch.texts]) for of_image in maps])
        torch.testing.assert_close(found[name], info_nce_by_loops(logits, batch.negative))


def test_a_text_of_the_same_subject_is_no_wrong_answer():
    """With one subject in a set there is nothing to tell apart, whatever the pixels are."""
    batch, stages, decoder = batch_of(images=4, subjects=[0, 0, 1, 1])
    found = mixreorg.Objective(settings(images=2), 6)(batch, stages, decoder)
    assert found["mixed"].item() == pytest.approx(0, abs=1e-12)


def test_parts_can_be_left_out_and_weighed():
    batch, stages, decoder = batch_of()
    whole = mixreorg.Objective(settings(), 6)(batch, stages, decoder)
    batch = batch._replace(random=np.random.default_rng(0))
    part = mixreorg.Objective(settings(restoration=False, weight=3.0), 6)(batch, stages, decoder)
    assert set(whole) == {"mixed", "original", "restored"} and set(part) == {"mixed", "original"}
    for name in part:
        torch.testing.assert_close(part[name], 3 * whole[name])


def test_a_decoder_that_changes_nothing_restores_the_original():
    batch, _, decoder = batch_of()
    for block in decoder.blocks:
        torch.nn.init.zeros_(block.gate)
    found = mixreorg.Objective(settings(), 6)(batch, decoder.stages(batch.dense), decoder)
    torch.testing.assert_close(found["restored"], found["original"])


class MixesAtTheEnd:
    """Stands in for a CLIP whose patches are mixed before a block: its features are those given, mixed by loops. Keeps what it is asked."""

    def __init__(self, dense):
        self.dense, self.asked = dense, []

    def encode_dense(self, images, mixing):
        block, source = mixing
        self.asked.append((images, block))
        mixed = torch.empty_like(self.dense)
        for i, y, x in np.ndindex(*source.shape):
            mixed[i, :, y, x] = self.dense[source[i, y, x], :, y, x]
        return mixed


@pytest.mark.parametrize("block", [0, 2])
def test_patches_mixed_in_clip_are_learnt_from_as_those_mixed_after_it(block):
    batch, stages, decoder = batch_of(images=4)
    expected = mixreorg.Objective(settings(images=2), 6)(batch, stages, decoder)
    clip, images = MixesAtTheEnd(batch.dense), np.zeros((4, 24, 24, 3), np.uint8)
    batch = batch._replace(random=np.random.default_rng(0), images=images, clip=clip)
    found = mixreorg.Objective(settings(images=2, block=block), 6)(batch, stages, decoder)
    assert len(clip.asked) == 1 and clip.asked[0][0] is images and clip.asked[0][1] == block
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_images_that_fill_no_set_are_refused():
    batch, stages, decoder = batch_of(images=6)
    with pytest.raises(ValueError, match=r"train.batch: 6 images in a process; allowed are multiples of mixreorg.images = 4"):
        mixreorg.Objective(settings(), 6)(batch, stages, decoder)
