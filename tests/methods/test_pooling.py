"""PACL, SimSeg, TCL and GroupViT, which pool pixels, by loops over their equations."""

import numpy as np
import pytest
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import groupvit, pacl, simseg, tcl
from ovseg.segmentation import units
from ovseg.training.objectives import WEIGHTS, Learner


def test_pacl_contrasts_texts_with_pixels_weighted_by_compatibility():
    batch, stages, decoder = batch_of(subjects=[0, 1, 2, 0, 3, 4, 5, 6])
    pixels = stages[-1].flatten(2).transpose(1, 2)
    logits = torch.zeros(8, 8, dtype=torch.float64)
    for i, j in np.ndindex(8, 8):
        scores = torch.stack([cosine(v, batch.texts[j]) for v in pixels[i]])
        weights = (scores / 0.3).exp() / (scores / 0.3).exp().sum()
        pooled = sum(w * v / v.norm() for w, v in zip(weights, pixels[i], strict=True))
        logits[i, j] = pooled @ batch.texts[j] / batch.texts[j].norm() / 0.2
    losses = pacl.Objective(pacl.Settings(patch_tau=0.3, tau=0.2), 6)(batch, stages, decoder)
    torch.testing.assert_close(losses["compatibility"], info_nce_by_loops(logits, batch.negative))


@pytest.mark.parametrize("select", ["channel", "text"])
def test_simseg_contrasts_texts_with_the_largest_responses(select):
    batch, stages, decoder = batch_of(subjects=[0, 1, 2, 0, 3, 4, 5, 6])
    pixels = stages[-1].detach().flatten(2)  # 8, 6, 36
    logits = torch.zeros(8, 8, dtype=torch.float64)
    for i, j in np.ndindex(8, 8):
        if select == "channel":
            image = torch.tensor([sum(sorted(channel)[-4:]) / 4 for channel in pixels[i]])
            logits[i, j] = cosine(image, batch.texts[j]) / 0.2
        else:
            logits[i, j] = sum(sorted(cosine(v, batch.texts[j]) for v in pixels[i].T)[-4:]) / 4 / 0.2
    losses = simseg.Objective(simseg.Settings(top=0.1, select=select, tau=0.2), 6)(batch, stages, decoder)  # 4 of 36 pixels
    torch.testing.assert_close(losses["local"], info_nce_by_loops(logits, batch.negative))


def test_tcl_grounds_masks_of_the_target_area():
    settings = P.tcl.model_copy(update={"weight": 3.0, "bias": -0.5, "tau": 0.2, "area": 0.3, "contrast_weight": 2.0, "area_weight": 0.5})
    batch, stages, decoder = batch_of(images=4, subjects=[0, 1, 0, 2])
    pixels = stages[-1]  # 4, d, 6, 6
    masks, logits = torch.zeros(4, 4, 6, 6, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for i, j in np.ndindex(4, 4):
        for y, x in np.ndindex(6, 6):
            masks[i, j, y, x] = 1 / (1 + (-(3 * cosine(pixels[i, :, y, x], batch.texts[j]) - 0.5)).exp())
        logits[i, j] = cosine((masks[i, j] * pixels[i]).sum((1, 2)) / masks[i, j].sum(), batch.texts[j]) / 0.2
    objective = tcl.Objective(settings, 6).double()
    losses = objective(batch, stages, decoder)
    torch.testing.assert_close(losses["contrast"], 2 * info_nce_by_loops(logits, batch.negative))
    own = sum(masks[i, i].mean() for i in range(4)) / 4
    others = [masks[i, j].mean() for i in range(4) for j in range(4) if i != j and {i, j} != {0, 2}]  # 0 and 2 drew one text
    torch.testing.assert_close(losses["area"], 0.5 * ((own - 0.3).abs() + sum(others) / len(others)))
    steps = [difference for maps in (pixels, masks) for difference in (maps[:, :, 1:] - maps[:, :, :-1], maps[..., 1:] - maps[..., :-1])]
    torch.testing.assert_close(losses["variation"], sum(step.abs().mean() for step in steps))
    sum(losses.values()).backward()
    assert {name for name, value in objective.named_parameters() if value.grad} == {"weight", "bias", "log_scale"}  # learned


def test_groupvit_contrasts_texts_with_the_mean_of_hard_groups():
    torch.manual_seed(0)
    batch, stages, decoder = batch_of(images=4, subjects=[0, 1, 0, 2])
    objective = groupvit.Objective(P.groupvit.model_copy(update={"groups": 3, "tau": 0.2, "gumbel_tau": 0.5}), 6).double()
    objective.tokens.data.mul_(50)  # far apart, so that pixels do not all join one
    pixels = stages[-1].flatten(2).transpose(1, 2)
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(4, 36, 3)).astype(np.float32))  # as the batch draws it
    logits, joined = torch.zeros(4, 4, dtype=torch.float64), set()
    for i in range(4):
        x = objective.norm(pixels[i])
        tokens = objective.norm_tokens(objective.tokens + objective.attention(objective.tokens[None], x[None], x[None])[0][0])
        group = ((objective.key(x) @ objective.query(tokens).T) / 6**0.5 + noise[i]).argmax(-1)
        joined |= set(group.tolist())
        members = [[pixels[i, p] for p in range(36) if group[p] == k] for k in range(3)]
        image = sum(sum(of_group) / (1 + len(of_group)) for of_group in members if of_group) / 3
        logits[i] = torch.stack([cosine(image, text) / 0.2 for text in batch.texts])
    assert joined == {0, 1, 2}
    loss = objective(batch, stages, decoder)["group"]
    torch.testing.assert_close(loss, info_nce_by_loops(logits, batch.negative), rtol=1e-6, atol=0)
    loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in objective.parameters())  # through the hard groups


def test_saved_groups_assign_pixels_as_trained_ones(tmp_path):
    learner = Learner(6, {"groupvit": P.groupvit, "tcl": P.tcl})
    assert groupvit.load_grouping(tmp_path) is None
    learner.save(tmp_path)
    loaded = groupvit.load_grouping(tmp_path)
    embeddings = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    assignment = units.form(embeddings, "learned-group", grouping=loaded)[1]
    expected = learner.objectives["groupvit"].scores(embeddings.flatten(2).transpose(1, 2)).argmax(-1)
    assert torch.equal(assignment.flatten(1), expected) and not loaded.training
    Learner(6, {"tcl": P.tcl}).save(tmp_path)
    assert (tmp_path / WEIGHTS).is_file() and groupvit.load_grouping(tmp_path) is None
