"""Learned groups: hard assignment and its gradient, group embeddings by loops, what inference gets back."""

import numpy as np
import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import groupvit, objectives
from ovseg.segmentation import units


def test_the_loss_is_info_nce_of_the_mean_of_hard_groups():
    torch.manual_seed(0)
    batch, stages, decoder = batch_of(images=4, subjects=[0, 1, 0, 2])
    objective = groupvit.Objective(P.groupvit.model_copy(update={"groups": 3, "tau": 0.2, "gumbel_tau": 0.5}), 6).double()
    with torch.no_grad():
        objective.tokens.mul_(50)  # far apart, so that pixels do not all join one
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
    found = objective(batch, stages, decoder)["group"]
    torch.testing.assert_close(found, info_nce_by_loops(logits, batch.negative), rtol=1e-6, atol=0)


def test_hard_groups_pass_a_gradient_to_all_parameters():
    batch, stages, decoder = batch_of()
    objective = groupvit.Objective(P.groupvit, 6).double()
    objective(batch, stages, decoder)["group"].backward()
    assert all(value.grad is not None and value.grad.any() for value in objective.parameters())


def test_saved_groups_assign_as_trained_ones_and_are_units(tmp_path):
    objective = groupvit.Objective(P.groupvit, 6)
    assert groupvit.load_grouping(tmp_path) is None
    objectives.save_objectives(torch.nn.ModuleDict({"groupvit": objective}), tmp_path)
    loaded = groupvit.load_grouping(tmp_path)
    embeddings = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = embeddings.flatten(2).transpose(1, 2)
    assert torch.equal(loaded.assign(pixels), objective.scores(pixels).argmax(-1))
    described, assignment = units.form(embeddings, "learned-group", grouping=loaded)
    for window in range(2):
        for y in range(4):
            for x in range(5):
                same = assignment[window] == assignment[window, y, x]
                torch.testing.assert_close(described[window, :, y, x], embeddings[window][:, same].mean(1))


def test_another_method_has_no_groups(tmp_path):
    objectives.save_objectives(torch.nn.ModuleDict({"tcl": objectives.open_objective("tcl", P.tcl, 6)}), tmp_path)
    assert (tmp_path / objectives.WEIGHTS).is_file() and groupvit.load_grouping(tmp_path) is None
    objectives.save_objectives(torch.nn.ModuleDict({"pacl": objectives.open_objective("pacl", P.pacl, 6)}), tmp_path / "none")
    assert not (tmp_path / "none").exists()
