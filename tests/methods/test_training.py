"""Training on cached features: the learning rate, the updates, the report, what a killed and a finished training leave."""

import copy
import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from small import BATCH, CAPTIONS, CPU, PAIRS, SETTINGS, WIDTH, P, changed, contents, data, make_bank, stream, write_cache, write_project
from tiny import bank_of

from ovseg.data.captions import nouns
from ovseg.methods import checkpoint, mgca, training
from ovseg.methods.batches import CachedImages, Pairs, StreamedImages
from ovseg.methods.checkpoint import fingerprint
from ovseg.methods.decoder import Decoder
from ovseg.methods.training import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 9
ADAM = {"optimizer": "adam", "precision": "bfloat16"}
IMAGES, BANK, TEXTS = data()


SECTIONS = {"mgca": P.mgca}


def train(path, settings=SETTINGS, seed=0, sections=SECTIONS, images=IMAGES, bank=BANK, texts=TEXTS):
    """(weights, history) of a training whose checkpoint is at the path."""
    learner, history, _ = training.train(settings, seed, sections, images, bank, texts, path)
    assert not learner.training
    return learner.decoder.state_dict(), history


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_learning_rates_by_hand():
    rates = [learning_rate(step, 10, 4, 2.0) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]  # up to the peak, which the cosine begins with
    assert rates[7] == pytest.approx(1.0) and rates[9] == pytest.approx(1 + math.cos(math.pi * 5 / 6))
    assert learning_rate(10, 10, 4, 2.0) == pytest.approx(0)
    assert learning_rate(0, 1, 0, 0.1) == learning_rate(0, 1, 1, 0.1) == learning_rate(0, 50, 0, 0.1) == 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_first_update_by_hand(optimizer):
    decoder = Decoder(2)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}
    training.make_optimizer(decoder, changed(optimizer=optimizer, lr=0.1, weight_decay=0.5)).step()
    for name, weight in before.items():
        # bias correction makes Adam's first step lr * g / |g|; the decay joins the gradient, or shrinks the weight by itself
        gradient = gradients[name] + (0.5 * weight if optimizer == "adam" else 0)
        expected = (weight if optimizer == "adam" else weight * (1 - 0.1 * 0.5)) - 0.1 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(decoder.state_dict()[name], expected)


def test_a_training_reports_every_step(tmp_path):
    weights, history = train(tmp_path / "run.pt")
    assert [row["step"] for row in history] == list(range(STEPS))
    assert [row["epoch"] for row in history] == pytest.approx([step / 3 for step in range(STEPS)])
    assert [row["lr"] for row in history] == [learning_rate(step, STEPS, 2, 0.01) for step in range(STEPS)]
    for row in history:
        assert row["loss"] == pytest.approx(row["object"] + row["region"] + row["pixel"], rel=1e-5)
    assert history[0]["gate0"] not in (0, history[-1]["gate0"]) and history[-1]["gate1"] == weights["blocks.1.gate"].item()


@pytest.mark.parametrize("epochs, batch, steps", [(0.4, 8, 1), (0.01, 8, 1), (1.0, 7, 3), (2.5, 12, 5), (1.0, 24, 1)])
def test_there_are_as_many_steps_as_the_epochs_have_full_batches(tmp_path, epochs, batch, steps):
    assert len(train(tmp_path / "run.pt", changed(epochs=epochs, batch=batch, warmup_epochs=0.0))[1]) == steps


def test_weights_change_and_follow_the_seed(tmp_path):
    first, again, other = (train(tmp_path / f"{run}.pt", seed=seed)[0] for run, seed in enumerate((0, 0, 1)))
    assert same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith(("conv.weight", "gate")))
    torch.manual_seed(0)
    start = Decoder(WIDTH).state_dict()
    assert not any(torch.equal(first[name], start[name]) for name in first)


def test_each_step_draws_texts_of_its_pairs_anew(tmp_path, monkeypatch):
    seen, real = [], mgca.losses

    def losses(pixels, drawn, negative, *others):
        seen.append((drawn.numpy(), negative.numpy()))
        return real(pixels, drawn, negative, *others)

    monkeypatch.setattr(mgca, "losses", losses)
    train(tmp_path / "run.pt")
    batches = [rows for epoch in range(3) for rows, *_ in IMAGES.epoch(0, epoch, 8, 0, CPU)]
    drew_caption = [set() for _ in range(8)]  # of each place in a batch, over the steps
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


def test_training_lowers_the_loss(tmp_path):
    # what each image shows is its caption, half hidden in noise that no text says anything of
    rng = np.random.default_rng(3)
    shown = TEXTS[BANK.caption].astype(np.float32)[:, :, None, None] * (rng.random((PAIRS, 1, 4, 4)) < 0.4)
    images = CachedImages((shown + 1.5 * rng.normal(size=shown.shape)).astype(np.float16))
    _, history = train(tmp_path / "run.pt", changed(epochs=40.0, caption_probability=1.0, checkpoint_steps=1000), images=images)
    first, last = (np.mean([row["loss"] for row in part]) for part in (history[:12], history[-12:]))
    assert last < 0.8 * first


def test_what_cannot_be_trained_on_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"train.batch = 25: allowed are 2\.\.24, the number of pairs"):
        train(tmp_path / "run.pt", changed(batch=25))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1, epoch 0.00: try a smaller train.lr"):
        train(tmp_path / "run.pt", texts=np.full_like(TEXTS, np.nan))
    assert not (tmp_path / "run.pt").exists()


@pytest.mark.parametrize("every", [1, 3])
def test_divergence_names_its_first_step_and_leaves_the_checkpoint_before_it(tmp_path, every):
    order = [row for rows, *_ in IMAGES.epoch(0, 0, BATCH, 0, CPU) for row in rows]
    array = IMAGES.array.copy()
    array[order[BATCH]] = np.nan  # a pair of the second step
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2, epoch 0.33: try a smaller train.lr; the last checkpoint"):
        train(tmp_path / "run.pt", changed(checkpoint_steps=every), images=CachedImages(array))
    if every == 1:
        state = torch.load(tmp_path / "run.pt", weights_only=True)
        assert state["step"] == 1 and all(value.isfinite().all() for value in state["learner"].values())
    else:
        assert not (tmp_path / "run.pt").exists()


def test_divergence_names_the_pairs_of_its_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array, (rows, *_) = IMAGES.array.copy(), list(IMAGES.epoch(0, 0, BATCH, 0, CPU))[1]
    array[rows[3]] = np.nan
    keys = [f"shard/{pair:08d}" for pair in range(PAIRS)]
    for named in ([str(row) for row in rows], [keys[row] for row in rows]):  # the second time `prepare` has left the keys
        with pytest.raises(FloatingPointError, match=f"the 8 pairs of its batch, {named[0]} and so on, are in run.pt.pairs.txt$"):
            train("run.pt", changed(checkpoint_steps=3), images=CachedImages(array))
        assert Path("run.pt.pairs.txt").read_text().split() == named
        Path("data/prepared").mkdir(parents=True, exist_ok=True)
        Path("data/prepared/pairs.txt").write_text("\n".join(keys) + "\n")


@pytest.mark.parametrize("at", [0, 3, 8])
def test_sigterm_keeps_the_running_step_and_ends_with_its_code(tmp_path, monkeypatch, capsys, at):
    expected, before = train(tmp_path / "whole.pt")[0], signal.getsignal(signal.SIGTERM)
    real, calls = mgca.losses, itertools.count()

    def losses(*arguments):
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(mgca, "losses", losses)
        train(tmp_path / "run.pt", changed(checkpoint_steps=50))
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.read_state(tmp_path / "run.pt")["step"] == at + 1 and f"step {at + 1} of {STEPS}" in capsys.readouterr().out
    killed_at(STEPS - at - 1, monkeypatch)  # a step more than are left
    assert same(train(tmp_path / "run.pt")[0], expected)


def test_a_gradient_that_is_not_finite_is_not_kept(tmp_path, monkeypatch):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    real, steps = mgca.losses, []

    def losses(pixels, *arguments):
        steps.append(len(steps))
        return real(Poison.apply(pixels) if len(steps) == 9 else pixels, *arguments)  # the last step

    monkeypatch.setattr(mgca, "losses", losses)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 9, epoch 2.67"):
        train(tmp_path / "run.pt")
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 8


def test_an_epoch_that_ends_early_does_not_go_on_for_ever(tmp_path):
    class Vanishing(CachedImages):
        def epoch(self, seed, epoch, *arguments):
            yield from list(super().epoch(seed, epoch, *arguments))[: 3 if epoch == 0 else 1]

    with pytest.raises(ValueError, match="epoch 1 ends 2 batches early: the shards have changed"):
        train(tmp_path / "run.pt", images=Vanishing(IMAGES.array))


# ---- being killed


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch):
    """Make a training stop in the middle of that step, once."""
    calls, real = iter(range(1000)), mgca.losses

    def losses(*arguments):
        if next(calls) == step:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(mgca, "losses", losses)


def kill(step, monkeypatch, *arguments, **values):
    """Train, and be killed in the middle of that step."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(step, patch)
        train(*arguments, **values)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
@pytest.mark.parametrize("options", [{}, ADAM], ids=["adamw float32", "adam bfloat16"])
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, step, options):
    settings, path = changed(**options), tmp_path / "run.pt"
    expected, history = train(tmp_path / "whole.pt", settings)
    kill(step, monkeypatch, path, settings)
    assert path.exists() == (step >= 2)
    killed_at(STEPS - step // 2 * 2, monkeypatch)  # a step more than are left after the last checkpoint
    for _ in range(2):  # the second finds a finished training
        resumed, rows = train(path, settings.model_copy(update={"checkpoint_steps": 50, "workers": 4}))
        assert same(resumed, expected) and rows == history


OTHERS = {
    "settings": {"settings": changed(lr=0.02)},
    "seed": {"seed": 5},
    "method": {"sections": {"pacl": P.pacl}},
    "its settings": {"sections": {"mgca": P.mgca.model_copy(update={"tau": 0.1})}},
    "texts": {"texts": TEXTS * 2},
    "images": {"images": CachedImages(IMAGES.array[::-1].copy())},
    "captions": {"bank": bank_of(list(reversed(CAPTIONS)) * 4, BANK.templates)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_training_is_not_used(tmp_path, monkeypatch, other):
    kill(5, monkeypatch, tmp_path / "run.pt")
    assert same(train(tmp_path / "run.pt", **other)[0], train(tmp_path / "fresh.pt", **other)[0])


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "made" / "run.pt"
    kill(3, monkeypatch, path)
    before = path.read_bytes()

    def dies(part, data, write=Path.write_bytes):
        write(part, data[: len(data) // 2])
        raise Killed

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(Killed):
        train(path)
    assert path.read_bytes() == before


def test_fingerprints_of_streams_tell_their_images_apart(tmp_path):
    images, bank = stream(tmp_path), make_bank(20)

    def mark(**values):
        return fingerprint(SETTINGS, 0, SECTIONS, StreamedImages(**vars(images) | values), bank, TEXTS)

    other = copy.copy(images.clip)
    other.positions = "scale-factor"
    assert mark() == mark(workers=3)
    assert len({mark(), mark(keys=images.keys[:-1]), mark(size=16), mark(clip=other)}) == 4


# ---- into a folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder. Returns a function that trains into models/mgca/seeds/SEED."""
    monkeypatch.chdir(tmp_path)
    write_project()
    return lambda seed=0, **values: training.train_into(f"models/mgca/seeds/{seed}", seed, P.clip, SECTIONS, changed(**values), None, CPU)


FOLDER = Path("models/mgca/seeds/0")


def test_a_finished_training_is_kept_and_its_checkpoint_is_gone(project):
    assert project()
    before = contents(FOLDER)
    assert set(before) == {"decoder.safetensors", "history.csv", "training.json"} and not list(Path("runs").rglob("*.pt"))
    assert same(Decoder.load(FOLDER).state_dict(), train("memory.pt")[0])
    assert not project() and not project(seeds=7, workers=1) and contents(FOLDER) == before  # even its seconds
    assert project(1) and contents(FOLDER) == before
    assert contents("models/mgca/seeds/1")["decoder.safetensors"] != before["decoder.safetensors"]


def test_other_parameters_other_data_or_a_lost_decoder_train_again(project):
    project()
    assert project(lr=0.02)
    assert project() and not project()
    (FOLDER / "decoder.safetensors").unlink()
    assert project() and not project()
    write_cache("data/features/train/texts.npy", TEXTS * 2)
    assert project() and not project()


def test_a_killed_training_goes_on_and_counts_its_seconds(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(5, patch)
        project()
    assert not FOLDER.exists()
    path = Path("runs/checkpoints/models/mgca/seeds/0.pt")
    checkpoint.write_state(path, checkpoint.read_state(path) | {"seconds": 1000.0})
    killed_at(STEPS - 4, monkeypatch)  # steps 4 to 8 are left: one more would raise
    assert project()
    assert json.loads(contents(FOLDER)["training.json"])["seconds"] >= 1000


@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_a_damaged_checkpoint_is_named_and_not_gone_on_from(tmp_path, monkeypatch, capsys, damage):
    expected, path = train(tmp_path / "whole.pt")[0], tmp_path / "run.pt"
    kill(5, monkeypatch, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"a bit": data, "the end": data[:-100], "all": b""}[damage])
    killed_at(STEPS, monkeypatch)  # a step more than there are
    assert same(train(path)[0], expected)
    assert capsys.readouterr().out.splitlines() == [f"{path} is damaged: it is not used, training begins anew"]


def test_explain_draws_prompts_of_the_first_pairs():
    drawn, found = training.explain(Decoder(WIDTH).eval(), Pairs(IMAGES, BANK, TEXTS, []), P, count=5)
    assert len(drawn) == 5
    for row, text in enumerate(drawn):
        prompts = [template.format(noun) for noun in nouns(CAPTIONS[row]) for template in BANK.templates]
        assert text in (prompts or [CAPTIONS[row]])
    assert found["object"].shape == found["similarity"].shape == found["region"].shape == (5, 8, 8)
    # an untrained decoder repeats each of the 4x4 features, and similarity is the plain product with the text
    text = torch.from_numpy(TEXTS[BANK.texts.index(drawn[2])]).float()
    expected = torch.einsum("dhw,d->hw", torch.from_numpy(IMAGES.array[2]).float(), text).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(found["similarity"][2], expected)


def test_weights_of_an_objective_belong_to_the_training(project):
    """A lost file trains again, and none is left of an earlier method."""
    sections = [{"tcl": P.tcl}, {"mgca": P.mgca}]
    arguments = [("models/mgca/seeds/0", 0, P.clip, of_method, changed(), None, CPU) for of_method in sections]
    assert training.train_into(*arguments[0]) and not training.train_into(*arguments[0])
    (FOLDER / "objective.safetensors").unlink()
    assert training.train_into(*arguments[0]) and (FOLDER / "objective.safetensors").is_file()
    assert training.train_into(*arguments[1]) and not (FOLDER / "objective.safetensors").exists()


def test_losses_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mgca, "losses", lambda pixels, *others: {"area": pixels.sum()})
    with pytest.raises(ValueError, match="a loss of tcl is named area: another has this name"):
        train(tmp_path / "run.pt", sections={"mgca": P.mgca, "tcl": P.tcl})
