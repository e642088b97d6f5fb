"""The package of methods, and the example of docs/methods.md: it is found, trains, and computes what the page says."""

import re
from pathlib import Path

import torch
from small import batch_of, changed, cosine, info_nce_by_loops, make_pairs

from ovseg import methods
from ovseg.training import loop

PAGE = Path(__file__).parents[2] / "docs/methods.md"


def test_each_file_with_an_objective_is_a_method():
    assert methods.names() == ["groupvit", "mgca", "mixreorg", "pacl", "simseg", "supervised", "tcl"]
    for module in map(methods.module, methods.names()):
        assert module.TITLE and all(field.is_required() for field in module.Settings.model_fields.values())


def test_the_example_is_the_contrast_of_mean_pixels_and_trains(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 30
    (tmp_path / "average.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "average" in methods.names()
    average = methods.module("average")
    batch, stages, decoder = batch_of(subjects=[0, 1, 2, 0, 3, 4, 5, 6])
    logits = torch.stack([torch.stack([cosine(v.flatten(1).mean(1), text) / 0.5 for text in batch.texts]) for v in stages[-1]])
    losses = average.Objective(average.Settings(tau=0.5), 6)(batch, stages, decoder)
    torch.testing.assert_close(losses["average"], info_nce_by_loops(logits, batch.negative))
    _, history, _ = loop.train(changed({"average": average.Settings(tau=0.5)}, method="average"), 0, make_pairs(), tmp_path / "run.pt")
    assert history[0]["loss"] == history[0]["average"] and history[-1]["gate0"] != 0
