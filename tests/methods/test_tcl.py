"""TCL's losses by loops over its equations, and its learned mask."""

import numpy as np
import pytest
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import tcl
from ovseg.methods.distributed import World


def test_losses_are_those_of_the_equations():
    settings = P.tcl.model_copy(update={"weight": 3.0, "bias": -0.5, "tau": 0.2, "area": 0.3, "contrast_weight": 2.0, "area_weight": 0.5})
    batch, stages, decoder = batch_of(images=4, subjects=[0, 1, 0, 2])
    pixels = stages[-1]  # 4, d, 6, 6
    masks, logits = torch.zeros(4, 4, 6, 6, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            for y in range(6):
                for x in range(6):
                    masks[i, j, y, x] = 1 / (1 + (-(3 * cosine(pixels[i, :, y, x], batch.texts[j]) - 0.5)).exp())
            grounded = (masks[i, j] * pixels[i]).sum((1, 2)) / masks[i, j].sum()
            logits[i, j] = cosine(grounded, batch.texts[j]) / 0.2
    found = tcl.Objective(settings, 6).double()(batch, stages, decoder)
    torch.testing.assert_close(found["contrast"], 2 * info_nce_by_loops(logits, batch.negative))
    own = sum(masks[i, i].mean() for i in range(4)) / 4
    others = [masks[i, j].mean() for i in range(4) for j in range(4) if i != j and {i, j} != {0, 2}]  # 0 and 2 drew one text
    torch.testing.assert_close(found["area"], 0.5 * ((own - 0.3).abs() + sum(others) / len(others)))
    variation = sum(
        (maps[:, :, 1:] - maps[:, :, :-1]).abs().mean() + (maps[..., 1:] - maps[..., :-1]).abs().mean() for maps in (pixels, masks)
    )
    torch.testing.assert_close(found["variation"], variation)


def test_an_image_as_its_text_wants_it_costs_little_area_and_no_variation():
    """Pixels all along the image's own text: masks are constant, 1 for it and 0 for the opposite one."""
    batch, stages, decoder = batch_of(images=2)
    texts = torch.stack([batch.texts[0], -batch.texts[0]])
    pixels = texts[:, :, None, None].expand(-1, -1, 6, 6)
    settings = P.tcl.model_copy(update={"weight": 50.0, "bias": 0.0, "area": 1.0})
    found = tcl.Objective(settings, 6).double()(batch._replace(texts=texts), [pixels], decoder)
    assert found["variation"].item() == pytest.approx(0, abs=1e-6) and found["area"].item() == pytest.approx(0, abs=1e-6)


def test_mask_and_temperature_are_learned():
    batch, stages, decoder = batch_of()
    objective = tcl.Objective(P.tcl, 6).double()
    sum(objective(batch, stages, decoder).values()).backward()
    assert {name for name, value in objective.named_parameters() if value.grad} == {"weight", "bias", "log_scale"}


class MeanColour:
    """Stands in for a CLIP: an image's embedding is a matrix times the mean of its masked pixels."""

    def __init__(self, matrix):
        self.matrix = matrix  # 3, d

    def encode_image(self, images, masks):
        return (torch.from_numpy(images).double() / 255 * masks[..., None]).mean((1, 2)) @ self.matrix


def test_the_image_level_is_that_of_the_equations():
    settings = P.tcl.model_copy(update={"weight": 3.0, "bias": -0.5, "tau": 0.2, "contrast_weight": 2.0, "image_level": True})
    batch, stages, decoder = batch_of(images=4, subjects=[0, 1, 0, 2])  # pixel embeddings 4, d, 6, 6
    images = np.random.default_rng(3).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)  # 4x4 px for each
    clip = MeanColour(torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    uniform = np.random.default_rng(5).uniform(1e-6, 1 - 1e-6, (4, 6, 6))
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        total = torch.zeros(3, dtype=torch.float64)
        for y, x in np.ndindex(6, 6):
            logit = 3 * cosine(stages[-1][i, :, y, x], batch.texts[i]).item() - 0.5
            if uniform[i, y, x] > 1 / (1 + np.exp(logit)):  # with probability sigmoid(logit)
                total += torch.from_numpy(images[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]).double().sum((0, 1)) / 255
        for j in range(4):
            logits[i, j] = cosine(total / 24**2 @ clip.matrix, batch.texts[j]) / 0.2
    batch = batch._replace(random=np.random.default_rng(5), images=images, clip=clip)
    found = tcl.Objective(settings, 6).double()(batch, stages, decoder)
    torch.testing.assert_close(found["image"], 2 * info_nce_by_loops(logits, batch.negative))
    assert set(found) == {"contrast", "area", "variation", "image"}


def test_drawn_masks_follow_the_sigmoid_and_carry_its_gradient():
    logits = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64).expand(20000, 3).clone().requires_grad_()
    drawn = tcl.gumbel_sigmoid(logits, np.random.default_rng(0), 20000, World())
    assert set(drawn.detach().unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.detach().mean(0), torch.sigmoid(logits[0]).detach(), atol=0.015, rtol=0)
    drawn.sum().backward()
    uniform = torch.from_numpy(np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (20000, 3)))
    soft = 1 / (1 + (1 - uniform) / uniform * (-logits.detach()).exp())
    torch.testing.assert_close(logits.grad, soft * (1 - soft))


def test_each_process_draws_its_share_of_the_masks():
    logits = torch.randn(8, 3, 3)
    whole = tcl.gumbel_sigmoid(logits, np.random.default_rng(0), 8, World())
    parts = [tcl.gumbel_sigmoid(logits[4 * rank : 4 * rank + 4], np.random.default_rng(0), 8, World(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)
