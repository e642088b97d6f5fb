"""Two gloo processes against one: the same losses, weights and samples; errors and signals end all of them."""

import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from small import CPU, Colours, changed, make_pairs, stream, write_project

from ovseg import methods
from ovseg.benchmarks import datasets, evaluation
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import cut_windows
from ovseg.training import distributed, loop
from ovseg.training.decoder import Decoder
from ovseg.training.distributed import World

METHOD = "+".join(name for name in methods.names() if name != "supervised")
# with such a decay, which is added to the gradient, the gradient's length counts in Adam
ALL = changed(method=METHOD, epochs=5 / 3, warmup_epochs=0.0, processes=2, optimizer="adam", weight_decay=1.0)


def train(path, device=CPU):
    learner, history, _ = loop.train(ALL, 0, make_pairs(), path, device)
    return learner.state_dict(), [row["loss"] for row in history]


def evaluated(folder):
    """[IoU, number of pictures read] of a benchmark of 3 pictures whose windows are cached, and of the same without a cache."""
    settings, read, real = tiny.changed(short_side=8, window=8, stride=4), [], datasets.Notes.add
    pixel = Segmenter(Colours(), Decoder(3), settings)
    mine, segmenters = datasets.FolderBenchmark("mine", folder / "mine"), {"pixel": pixel, "four": pixel.with_unit("meta-point")}
    windows = np.concatenate([pixel.encode(cut_windows(image, settings)[0]) for _, image, _ in mine])
    suite = [evaluation.Encoded(mine, torch.eye(3)[:2], array) for array in (windows, None)]
    with mock.patch.object(datasets.Notes, "add", lambda *sample: read.append(1) or real(*sample)):
        return [(evaluation.evaluate(segmenters, [encoded]), len(read)) for encoded in suite]


def compute(folder, images, device):
    """What one of two processes computes, saved in a file. Then the second process fails, and the first waits for it in vain."""
    world = distributed.joined()
    checkpoint = folder / f"of {world.rank}/run.pt"  # only the first process may find it
    results = {"threads": torch.get_num_threads(), "weights": train(checkpoint, device)}
    if world.rank == 0:
        state = torch.load(checkpoint, weights_only=True)
        state["learner"]["decoder.blocks.0.gate"] += 1  # finished, but with another weight
        torch.save(state, checkpoint)
    results["resumed"] = train(checkpoint, device)
    os.chdir(folder)
    results["into"] = [loop.train_into("models/default/seeds/0", 0, ALL, None, device) for _ in range(2)]
    results["stream"] = []
    for rows, dense, _ in images.epoch(0, 1, 4, 0, device):
        own = (dense[:, 0, 0, 0] / 10).round().long().tolist()  # the numbers that the images' colours stand for
        assert own == rows[world.share(4)].tolist()
        results["stream"].append((rows.tolist(), own))
    results["evaluated"] = evaluated(folder)
    torch.save(results, f"{folder}/{world.rank}.pt")
    if world.rank == 1:
        raise RuntimeError("this is why")
    torch.distributed.barrier()


def test_two_processes_compute_what_one_does_and_fail_together(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    write_project()
    maps = [np.random.default_rng(index).integers(0, 3, size) for index, size in enumerate([(8, 9), (20, 12), (9, 30)])]
    tiny.write_benchmark(tmp_path / "mine", maps, ["background", "cat", "sofa"])
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Exception, match=r"rank +: 1 (.|\n)*RuntimeError: this is why"):
        distributed.launch(2, 5, compute, tmp_path, stream(tmp_path, (4, 3, 2, 4), workers=2), CPU)
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))  # torch's would raise its own error
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    weights, losses = train(tmp_path / "alone.pt")
    (cached, _), (direct, six) = evaluated(tmp_path)
    assert min(direct["mine"]["pixel"].values()) > 0 and direct["mine"]["pixel"] != direct["mine"]["four"] and six == 6
    assert [results["evaluated"] for results in ranks] == [[(cached, 3), (direct, 5)], [(cached, 3), (direct, 4)]]  # to the last digit
    assert len(losses) == 5
    for results in ranks:
        assert results["threads"] == max(1, len(os.sched_getaffinity(0)) // 2) and results["into"] == [True, False]
        torch.testing.assert_close(results["weights"][0], weights, rtol=1e-4, atol=1e-5)
        assert results["weights"][1] == pytest.approx(losses, rel=1e-5)
        assert results["resumed"][0]["decoder.blocks.0.gate"] == results["weights"][0]["decoder.blocks.0.gate"] + 1
    assert [rows for rows, _ in ranks[0]["stream"]] == [rows for rows, _ in ranks[1]["stream"]]  # both know whole batches
    first, second = ([number for _, part in results["stream"] for number in part] for results in ranks)
    assert sorted(first) == [0, 1, 2, 3, 7, 8]  # shards 0 and 2
    assert len(second) == len(set(second)) == 6 and set(second) < {4, 5, 6, 9, 10, 11, 12}  # of shards 1 and 3, one is left out
    alone = ALL.model_copy(update={"train": ALL.train.model_copy(update={"processes": 1})})
    assert not loop.train_into("models/default/seeds/0", 0, alone, None, CPU)


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="finds child processes in /proc")
def test_sigterm_ends_all_processes_of_a_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project()
    parent = os.fork()
    if not parent:
        try:
            loop.train_into("models/a", 0, changed(epochs=1e6, processes=2), None, CPU)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    checkpoint = Path("runs/checkpoints/models/a.pt")
    wait_until(checkpoint.exists)
    started = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(started) >= 2
    os.kill(parent, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 128 + signal.SIGTERM
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    assert torch.load(checkpoint, weights_only=True)["step"] >= 2


def test_batches_that_processes_cannot_share_are_clear_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "joined", lambda: World(0, 2))
    for p, pairs in ((changed(), make_pairs(images=stream(tmp_path, (6,)))), (changed(batch=3), make_pairs())):
        with pytest.raises(ValueError, match="a multiple of 2, the number of processes, each of which reads its own shards$"):
            loop.train(p, 0, pairs, tmp_path / "run.pt")
