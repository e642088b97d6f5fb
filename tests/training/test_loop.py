"""Training on cached features: the learning rate, the updates, the history, and what killed and finished trainings leave."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from small import BATCH, CAPTIONS, CPU, PAIRS, WIDTH, P, changed, make_pairs, same, stream, write_array, write_project
from tiny import bank_of

from ovseg.data.captions import nouns
from ovseg.methods import mgca
from ovseg.training import loop
from ovseg.training.batches import CachedImages
from ovseg.training.decoder import Decoder
from ovseg.training.loop import fingerprint, learning_rate

STEPS = 9
DATA = make_pairs()
BANK, TEXTS = DATA.bank, DATA.texts


def train(path, p=None, seed=0, pairs=DATA):
    """(weights, history) of a training with its checkpoint at path."""
    learner, history, _ = loop.train(p or changed(), seed, pairs, path)
    assert not learner.training
    return learner.decoder.state_dict(), history


def test_learning_rates_by_hand():
    rates = [learning_rate(step, 10, 4, 2.0) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]  # up to the peak, at which the cosine begins
    assert rates[7] == pytest.approx(1.0) and rates[9] == pytest.approx(1 + math.cos(math.pi * 5 / 6))
    assert learning_rate(10, 10, 4, 2.0) == pytest.approx(0)
    assert learning_rate(0, 1, 0, 0.1) == learning_rate(0, 1, 1, 0.1) == learning_rate(0, 50, 0, 0.1) == 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_first_update_by_hand(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(mgca, "losses", lambda pixels, *others: {"object": pixels.sum()})
    p = changed(optimizer=optimizer, lr=0.1, weight_decay=0.5, epochs=0.01, warmup_epochs=0.0)
    weights, _ = train(tmp_path / "run.pt", p)
    torch.manual_seed(0)
    before = Decoder(WIDTH).state_dict()["blocks.0.conv.weight"]  # has no gradient while the gate is 0
    # bias correction makes Adam's first step lr * g / |g|; the decay is added to the gradient, or shrinks the weight by itself
    expected = before * (1 - 0.1 * 0.5) if optimizer == "adamw" else before - 0.1 * 0.5 * before / (0.5 * before.abs() + 1e-8)
    torch.testing.assert_close(weights["blocks.0.conv.weight"], expected)
    assert abs(weights["blocks.0.gate"].item()) == pytest.approx(0.1, rel=1e-5)


def test_each_step_draws_texts_of_its_pairs_and_is_in_the_history(tmp_path, monkeypatch):
    seen, real = [], mgca.losses

    def losses(pixels, drawn, negative, *others):
        seen.append((drawn.numpy(), negative.numpy()))
        return real(pixels, drawn, negative, *others)

    monkeypatch.setattr(mgca, "losses", losses)
    weights, history = train(tmp_path / "run.pt")
    batches = [rows for epoch in range(3) for rows, *_ in DATA.images.epoch(0, epoch, BATCH, 0, CPU)]
    drew_caption = [set() for _ in range(BATCH)]  # of each place in a batch, over the steps
    for rows, (drawn, negative) in zip(batches, seen, strict=True):
        ids = np.array([np.abs(TEXTS.astype(np.float32) - row).sum(1).argmin() for row in drawn])
        subjects = BANK.subjects(ids)
        assert np.array_equal(drawn, TEXTS[ids]) and np.array_equal(negative, subjects[:, None] != subjects)
        for place, (row, text) in enumerate(zip(rows, (BANK.texts[i] for i in ids), strict=True)):
            caption = CAPTIONS[row % len(CAPTIONS)]
            prompts = [template.format(noun) for noun in nouns(caption) for template in BANK.templates]
            assert text == caption or text in prompts
            if prompts:
                drew_caption[place].add(text == caption)
    assert drew_caption.count({True, False}) >= 4
    for step, row in enumerate(history):
        assert row["step"] == step and row["epoch"] == pytest.approx(step / 3) and row["lr"] == learning_rate(step, STEPS, 2, 0.01)
        assert row["loss"] == pytest.approx(row["object"] + row["region"] + row["pixel"], rel=1e-5)
    assert len(history) == STEPS
    assert history[0]["gate0"] not in (0, history[-1]["gate0"]) and history[-1]["gate1"] == weights["blocks.1.gate"].item()


@pytest.mark.parametrize("epochs, batch, steps", [(0.01, 8, 1), (1.0, 7, 3), (2.5, 12, 5)])
def test_epochs_consist_of_full_batches(tmp_path, epochs, batch, steps):
    assert len(train(tmp_path / "run.pt", changed(epochs=epochs, batch=batch, warmup_epochs=0.0))[1]) == steps


def test_weights_follow_the_seed_and_learn(tmp_path):
    # each image shows its caption, half hidden in noise that no text describes
    rng = np.random.default_rng(3)
    shown = TEXTS[BANK.caption_index].astype(np.float32)[:, :, None, None] * (rng.random((PAIRS, 1, 4, 4)) < 0.4)
    pairs = DATA._replace(images=CachedImages((shown + 1.5 * rng.normal(size=shown.shape)).astype(np.float16)))
    p = changed(epochs=40.0, caption_probability=1.0, checkpoint_steps=1000)
    first, history = train(tmp_path / "0.pt", p, pairs=pairs)
    start, end = (np.mean([row["loss"] for row in part]) for part in (history[:12], history[-12:]))
    assert end < 0.8 * start
    other, _ = train(tmp_path / "1.pt", p, seed=1, pairs=pairs)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith(("conv.weight", "gate")))


def test_wrong_batches_and_data_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^train.batch = 25: must be between 2 and 24 \(the number of pairs\)$"):
        train(tmp_path / "run.pt", changed(batch=25))
    monkeypatch.setattr(mgca, "losses", lambda pixels, *others: {"area": pixels.sum()})
    with pytest.raises(ValueError, match="^tcl: loss name 'area' is already taken$"):
        train(tmp_path / "run.pt", changed(method="mgca+tcl"))

    class Vanishing(CachedImages):
        def epoch(self, seed, epoch, *arguments):
            yield from list(super().epoch(seed, epoch, *arguments))[: 3 if epoch == 0 else 1]

    with pytest.raises(ValueError, match="^epoch 1 ends 2 batches early: the shards have changed since `prepare`$"):
        train(tmp_path / "run.pt", changed(method="pacl"), pairs=DATA._replace(images=Vanishing(DATA.images.array)))


def test_a_loss_that_is_not_finite_ends_the_training_with_its_step(tmp_path):
    rows = [rows for rows, *_ in DATA.images.epoch(0, 0, BATCH, 0, CPU)]
    array = DATA.images.array.copy()
    array[rows[2][0]] = np.nan  # a pair of the third step; checkpoints are due after the second and the fourth
    with pytest.raises(FloatingPointError, match="^the loss or a gradient is not finite at step 3, epoch 0.67: try a smaller train.lr$"):
        train(tmp_path / "run.pt", pairs=DATA._replace(images=CachedImages(array)))
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["learner"].values())


def test_a_gradient_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    real, steps = mgca.losses, iter(range(STEPS))

    def losses(pixels, *arguments):
        if next(steps) == STEPS - 1:
            pixels.register_hook(lambda gradient: gradient * torch.nan)
        return real(pixels, *arguments)

    monkeypatch.setattr(mgca, "losses", losses)
    with pytest.raises(FloatingPointError, match="not finite at step 9, epoch 2.67"):
        train(tmp_path / "run.pt")
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 8


# ---- killed and finished trainings

FOLDER = Path("models/default/seeds/0")
CHECKPOINT = Path("runs/checkpoints/models/default/seeds/0.pt")


def into(p=None, seed=0):
    return loop.train_into(FOLDER.with_name(str(seed)), seed, p or changed(), None, CPU)


def contents(folder=FOLDER):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project()


def killed_at(step, p):
    """Train in a forked process that is killed with SIGKILL in the middle of that step."""
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        return
    real, steps = mgca.losses, iter(range(STEPS))
    mgca.losses = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == step else real(*arguments)
    try:
        into(p)
    finally:
        os._exit(1)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "precision": "bfloat16"}], ids=["adamw float32", "adam bfloat16"])
def test_a_training_killed_twice_ends_with_the_weights_of_an_uninterrupted_one(project, tmp_path, capsys, options):
    p = changed(**options)
    expected, history = train(tmp_path / "whole.pt", p)
    killed_at(5, p)
    assert not FOLDER.exists() and torch.load(CHECKPOINT, weights_only=True)["step"] == 4
    killed_at(3, p)  # step 8 of all, counted from 0: 3 more than the checkpoint's
    state = torch.load(CHECKPOINT, weights_only=True)
    assert state["step"] == 6
    torch.save(state | {"seconds": 1000.0}, CHECKPOINT)
    assert into(changed(**options, checkpoint_steps=50, workers=4)) and not list(Path("runs").rglob("*.pt*"))
    assert capsys.readouterr().out == f"resuming at step 6, from {CHECKPOINT}\n"
    assert same(Decoder.load(FOLDER).state_dict(), expected) and json.loads(contents()["training.json"])["seconds"] >= 1000
    assert len(contents()["history.csv"].splitlines()) == 1 + STEPS == 1 + len(history)


def test_checkpoints_of_another_training_are_not_used_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "run.pt"
    train(path, changed(lr=0.02))
    assert same(train(path)[0], train(tmp_path / "fresh.pt")[0])
    for damaged in (b"", b"no checkpoint", path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="run.pt is damaged: delete it to train from the start$"):
            train(path)


def test_a_finished_training_is_kept_until_something_it_depends_on_changes(project):
    assert into()
    before = contents()
    assert set(before) == {"decoder.safetensors", "history.csv", "training.json"} and not list(Path("runs").rglob("*.pt"))
    assert not into(changed(seeds=7, workers=1)) and contents() == before  # even its seconds
    assert into(seed=1) and contents() == before
    assert contents(FOLDER.with_name("1"))["decoder.safetensors"] != before["decoder.safetensors"]
    assert into(changed(lr=0.02)) and into() and not into()
    tcl = changed(method="tcl", epochs=1.0)
    assert into(tcl) and not into(tcl)
    for name in ("decoder", "objective"):
        (FOLDER / f"{name}.safetensors").unlink()
        assert into(tcl) and (FOLDER / f"{name}.safetensors").is_file()
    write_array("data/features/train/texts.npy", TEXTS * 2)
    assert into(tcl) and into() and not (FOLDER / "objective.safetensors").exists()  # none is left of an earlier method


def test_fingerprints_tell_parameters_data_and_code_apart(tmp_path, monkeypatch):
    def mark(p=None, seed=0, pairs=DATA, **fields):
        return json.dumps(fingerprint(p or changed(), seed, pairs._replace(**fields)))

    images, captions = stream(tmp_path), bank_of(list(reversed(CAPTIONS)) * 4, BANK.templates)
    marks = [mark(), mark(changed(lr=0.02)), mark(seed=5), mark(changed(method="pacl")), mark(bank=captions), mark(images=images)]
    marks += [mark(changed({"mgca": P.mgca.model_copy(update={"tau": 0.1})})), mark(made_of={"texts": "another digest"})]
    assert len(set(marks)) == len(marks)
    assert mark() == mark(changed(workers=3, processes=2, checkpoint_steps=7), images=CachedImages(DATA.images.array[:1]))
    assert mark() == mark(changed({"tcl": P.tcl.model_copy(update={"tau": 0.1})}))  # another method's
    read = []
    monkeypatch.setattr(loop, "syntax", lambda file: read.append(file.relative_to(Path(loop.__file__).parents[1]).as_posix()) or "")
    assert mark() not in marks  # the code counts
    names = ("__init__", "batches", "curation", "decoder", "distributed", "loop", "objectives", "outliers")
    code, of_mgca = {f"training/{name}.py" for name in names} | {"data/captions.py"}, {"methods/mgca.py", "methods/mining.py"}
    assert set(read) == code | of_mgca
    read.clear()
    mark(changed(method="tcl"), images=images)
    assert set(read) > code | {"methods/tcl.py", "clip/dense.py", "data/images.py"} and not of_mgca & set(read)


def test_what_a_training_is_repeated_for_is_named(project, monkeypatch, capsys):
    assert into() and capsys.readouterr().out == ""
    monkeypatch.setattr(loop, "syntax", lambda file, real=loop.syntax: real(file) + "1" * (file.name == "mining.py"))
    assert into(changed(lr=0.02)) and not into(changed(lr=0.02))
    assert capsys.readouterr().out.endswith("/0 is trained again: changed are parameters, methods/mining.py\n")
