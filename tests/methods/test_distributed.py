"""Several gloo processes against one: the same losses, gradients and weights, every sample once, no hang, none left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import BATCH, CPU, WIDTH, P, changed, contents, data, stream, write_project

from ovseg.methods import checkpoint, contrast, distributed, mgca, training
from ovseg.methods.batches import CachedImages
from ovseg.methods.decoder import Decoder
from ovseg.methods.distributed import World
from ovseg.values import METHODS

SETTINGS = changed(epochs=5 / 3, warmup_epochs=0.0, processes=2)
SECTIONS = {name: getattr(P, name) for name in METHODS if name != "supervised"}  # all at once


def loss_and_gradients(direction):
    """Of one batch through a decoder, in this process' share: (loss, {parameter: gradient}), summed over processes by DDP."""
    images, bank, texts = data()
    world = distributed.joined()
    torch.manual_seed(0)
    decoder = Decoder(WIDTH)
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.5)  # at 0 the convolutions would get no gradient
    rows, dense, _ = next(images.epoch(0, 0, BATCH, 0, CPU))
    ids = bank.draw(rows, np.random.default_rng(0), 0.5)
    forward = torch.nn.parallel.DistributedDataParallel(decoder) if world.size > 1 else decoder
    pixels = forward(dense).flatten(2).transpose(1, 2)
    settings = P.mgca.model_copy(update={"direction": direction})
    drawn, negative = torch.from_numpy(texts[ids]).float(), contrast.negatives(torch.from_numpy(bank.subjects(ids)), True)
    loss = sum(mgca.losses(pixels, drawn, negative, settings, world).values())
    (loss * world.size).backward()
    return loss.detach(), {name: value.grad.clone() for name, value in decoder.named_parameters()}


DIRECTIONS = ("image-to-text", "text-to-image", "both")


def save_losses_and_gradients(folder, device):
    torch.save([loss_and_gradients(direction) for direction in DIRECTIONS], f"{folder}/{os.environ['RANK']}.pt")
    return os.environ["RANK"], torch.get_num_threads()


def test_two_processes_have_the_losses_and_the_gradients_of_one(tmp_path):
    assert distributed.launch(2, save_losses_and_gradients, tmp_path, CPU) == ("0", max(1, os.cpu_count() // 2))
    for rank in range(2):
        of_rank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for direction, (found, gradients) in zip(DIRECTIONS, of_rank, strict=True):
            loss, expected = loss_and_gradients(direction)
            torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
            for name in expected:
                assert expected[name].any()
                assert (gradients[name] - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def train_and_save(folder, device):
    """Train where only the first process may find a checkpoint."""
    rank = distributed.joined().rank
    learner, history, _ = training.train(SETTINGS, 0, SECTIONS, *data(), f"{folder}/of {rank}/run.pt", device)
    torch.save((learner.state_dict(), history), f"{folder}/{rank}.pt")


def test_two_processes_have_the_weights_of_one_and_resume_where_the_first_stood(tmp_path):
    learner, history, _ = training.train(SETTINGS, 0, SECTIONS, *data(), tmp_path / "alone.pt")
    assert len(history) == 5
    distributed.launch(2, train_and_save, tmp_path, CPU)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for weights, rows in found:
        for name, expected in learner.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], rel=1e-5)
    state = torch.load(tmp_path / "of 0/run.pt", weights_only=True)
    state["learner"]["decoder.blocks.0.gate"] += 1  # finished, but with other weights: so these are what all must end with
    checkpoint.write_state(tmp_path / "of 0/run.pt", state)
    distributed.launch(2, train_and_save, tmp_path, CPU)
    for rank, (before, _) in enumerate(found):
        weights, rows = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(rows) == 5 and weights["decoder.blocks.0.gate"] == before["decoder.blocks.0.gate"] + 1


class Signalled(CachedImages):
    """Cached images of a process that says that it is ready before its fourth batch, and waits for a SIGTERM."""

    def epoch(self, seed, epoch, *arguments):
        for index, batch in enumerate(super().epoch(seed, epoch, *arguments)):
            if (epoch, index) == (1, 0):
                wait_for_sigterm()
            yield batch


def wait_for_sigterm():
    """Until the handler that the training has set was called."""
    came, handler = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *arguments: (handler(*arguments), came.append(True)))
    Path(f"{distributed.joined().rank}.ready").touch()
    wait_until(lambda: came)


def train_until_signalled(device):
    images, bank, texts = data()
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 100})
    training.train(settings, 0, SECTIONS, Signalled(images.array), bank, texts, "run.pt", device)


def test_sigterm_to_several_processes_keeps_the_running_step(tmp_path):
    code = "import test_distributed as t; t.distributed.launch(2, t.train_until_signalled, t.CPU)"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here, here.parent)))}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path)
    wait_until(lambda: all((tmp_path / f"{rank}.ready").exists() for rank in range(2)) or parent.poll() is not None)
    parent.terminate()
    assert parent.wait(120) == 143
    state = checkpoint.read_state(tmp_path / "run.pt")
    assert state["step"] == 4 and len(state["history"]) == 4  # the batch that the signal came in, and no other
    learner, history, _ = training.train(SETTINGS, 0, SECTIONS, *data(), tmp_path / "alone.pt")
    assert [row["loss"] for row in state["history"]] == pytest.approx([row["loss"] for row in history[:4]], rel=1e-5)


def test_a_training_into_a_folder_in_two_processes_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project()
    run = ("models/mgca/seeds/0", 0, P.clip, {"mgca": P.mgca}, SETTINGS, None, CPU)
    assert training.train_into(*run)
    before = contents(run[0])
    assert json.loads(before["training.json"])["parameters"]["train.processes"] == 2 and not list(Path("runs").rglob("*.pt"))
    assert not training.train_into(*run) and contents(run[0]) == before


def stream_and_save(folder, images, device):
    share, found = distributed.joined().share(4), []
    for epoch in range(2):
        for rows, dense, _ in images.epoch(0, epoch, 4, 0, device):
            own = (dense[:, 0, 0, 0] / 10).round().long()  # the number that an image's colour tells
            assert torch.equal(own, torch.from_numpy(rows)[share])
            found.append((epoch, rows.tolist(), own.tolist()))
    torch.save(found, f"{folder}/{distributed.joined().rank}.pt")


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_give_each_sample_to_one_process_once_an_epoch(tmp_path, workers):
    images = stream(tmp_path, (4, 3, 2, 4), workers=workers)  # six pairs for the first process, seven for the second: one is left out
    distributed.launch(2, stream_and_save, tmp_path, images, CPU)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [batch[:2] for batch in found[0]] == [batch[:2] for batch in found[1]]  # both know whole batches
    for epoch in range(2):
        own = [[number for e, _, part in of_rank if e == epoch for number in part] for of_rank in found]
        assert sorted(own[0]) == [0, 1, 2, 3, 7, 8]  # shards 0 and 2; of 1 and 3:
        assert len(own[1]) == len(set(own[1])) == 6 and set(own[1]) < {4, 5, 6, 9, 10, 11, 12}


def test_batches_that_processes_cannot_share_are_clear_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "joined", lambda: World(0, 2))
    images, bank, texts = data()
    with pytest.raises(ValueError, match="use more shards"):
        training.train(SETTINGS, 0, {"mgca": P.mgca}, stream(tmp_path, (6,)), bank, texts, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="train.batch = 3: allowed are multiples of the number of processes, 2"):
        training.train(changed(batch=3), 0, {"mgca": P.mgca}, images, bank, texts, tmp_path / "run.pt")


def fail(how, device):
    if distributed.joined().rank == 1:
        if how == "raise":
            raise RuntimeError("this is why")
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()  # the first process waits for what never comes


@pytest.mark.parametrize("how, why", [("raise", "RuntimeError: this is why"), ("kill", "SIGKILL")])
def test_a_process_that_fails_ends_the_run_with_its_rank_and_error(how, why):
    with pytest.raises(Exception, match=rf"rank +: 1 (.|\n)*{why}"):
        distributed.launch(2, fail, how, CPU)


def wait_for_ever(folder, device):
    Path(f"{folder}/{distributed.joined().rank}.pid").write_text(str(os.getpid()))
    if distributed.joined().rank == 1:
        time.sleep(10_000)
    torch.distributed.barrier()


def running(pid):
    """Whether a process is there, and not just waiting for its parent to notice its end."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Killed, and started as a shell does in the background: with interrupts ignored."""
    code = f"import test_distributed as t; t.distributed.launch(2, t.wait_for_ever, {str(tmp_path)!r}, t.CPU)"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    parent = subprocess.Popen([*shell, sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2])
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files) or parent.poll() is not None)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(running(file.read_text()) for file in files))


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_shares_are_equal_and_in_order():
    assert [list(range(12))[World(rank, 3).share(12)] for rank in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
