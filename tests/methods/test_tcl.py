"""TCL's losses by loops over its equations, and its learned mask."""

import pytest
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import tcl


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
