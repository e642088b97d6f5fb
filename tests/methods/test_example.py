"""The method of docs/methods.md, taken from there: it trains, and is what it says."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from small import SETTINGS, WIDTH, batch_of, cosine, data, info_nce_by_loops

from ovseg.methods import training
from ovseg.methods.decoder import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "docs/methods.md"


@pytest.fixture
def example(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("ovseg.methods.average")
    module.__package__ = "ovseg.methods"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), vars(module))
    assert len(code.splitlines()) <= 30
    return module


def test_it_is_the_contrast_of_mean_pixels(example):
    batch, stages, decoder = batch_of(subjects=[0, 1, 2, 0, 3, 4, 5, 6])
    means = [of_image.flatten(1).mean(1) for of_image in stages[-1]]
    logits = torch.stack([torch.stack([cosine(mean, text) / 0.07 for text in batch.texts]) for mean in means])
    found = example.Objective(None, 6)(batch, stages, decoder)["average"]
    torch.testing.assert_close(found, info_nce_by_loops(logits, batch.negative))


def test_it_trains(example, tmp_path):
    learner, history, _ = training.train(SETTINGS, 0, {"average": None}, *data(), tmp_path / "run.pt")
    assert set(history[0]) > {"loss", "average"} and history[0]["loss"] == history[0]["average"]
    assert history[-1]["gate0"] != 0 and not torch.equal(learner.decoder.blocks[0].conv.weight, Decoder(WIDTH).blocks[0].conv.weight)
