"""Several gloo processes against one: the same losses, gradients and weights, every sample once, no hang."""

import io
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import params
from ovseg.data import shards
from ovseg.data.captions import TextBank
from ovseg.methods import alignment, batches, distributed, training
from ovseg.methods.decoder import Decoder
from ovseg.methods.distributed import World

P = params.load(path=Path(__file__).parents[2] / "params.yaml")
BATCH, WIDTH, PAIRS = 8, 8, 24
SETTINGS = P.train.model_copy(
    update={"batch": BATCH, "epochs": 5 / 3, "warmup_epochs": 0.0, "precision": "float32", "lr": 0.01, "workers": 0, "processes": 2}
)
CAPTIONS = ["a dog and a cat.", "the sea", "a boat on the sea", "a tree, a house and the sky", "a cat."]
CPU = torch.device("cpu")


def data():
    """A bank, its texts' embeddings and cached features, the same in every process."""
    bank = TextBank.build([CAPTIONS[n % len(CAPTIONS)] for n in range(PAIRS)], ["a photo of a {}.", "many {}."])
    rng = np.random.default_rng(1)
    texts = rng.normal(size=(len(bank.texts), WIDTH)).astype(np.float16)
    return batches.CachedImages(rng.normal(size=(PAIRS, WIDTH, 4, 4)).astype(np.float16)), bank, texts


def loss_and_gradients(world, direction):
    """Of one batch through a decoder, in this process' share: (loss, {parameter: gradient}), summed over processes by DDP."""
    images, bank, texts = data()
    torch.manual_seed(0)
    decoder = Decoder(WIDTH)
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.5)  # at 0 the convolutions would get no gradient
    rows, dense = next(images.epoch(0, 0, BATCH, 0, CPU))
    ids = bank.draw(rows, np.random.default_rng(0), 0.5)
    forward = torch.nn.parallel.DistributedDataParallel(decoder) if world.size > 1 else decoder
    pixels = forward(dense).flatten(2).transpose(1, 2)
    settings = P.mgca.model_copy(update={"direction": direction})
    drawn, subjects = torch.from_numpy(texts[ids]).float(), torch.from_numpy(bank.subjects(ids))
    loss = sum(alignment.losses(pixels, drawn, subjects, settings, world).values())
    (loss * world.size).backward()
    return loss.detach(), {name: value.grad.clone() for name, value in decoder.named_parameters()}


def save_loss_and_gradients(device, folder, direction):
    world = distributed.joined()
    torch.save(loss_and_gradients(world, direction), f"{folder}/{world.rank}.pt")


@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image", "both"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path, direction):
    distributed.launch(2, save_loss_and_gradients, CPU, str(tmp_path), direction)
    loss, gradients = loss_and_gradients(World(), direction)
    for rank in range(2):
        found, of_rank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
        for name, expected in gradients.items():
            assert expected.any()
            assert (of_rank[name] - expected).norm() <= 1e-5 * expected.norm(), name


def train_and_save(device, folder):
    images, bank, texts = data()
    world = distributed.joined()
    decoder, history, _ = training.train(SETTINGS, 0, P.mgca, images, bank, texts, f"{folder}/run.pt", device)
    torch.save((decoder.state_dict(), history), f"{folder}/{world.rank}.pt")


def test_two_processes_have_the_weights_of_one_after_five_steps(tmp_path):
    distributed.launch(2, train_and_save, CPU, str(tmp_path))
    images, bank, texts = data()
    decoder, history, _ = training.train(SETTINGS, 0, P.mgca, images, bank, texts, tmp_path / "alone.pt")
    assert len(history) == 5
    for rank in range(2):
        weights, rows = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in decoder.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], rel=1e-5)


class Colours:
    """Stands in for a CLIP: the dense features of an image are its colours, averaged over 4x4 pixels."""

    width, dense = 3, "maskclip"

    def encode_dense(self, images):
        return torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 4)


def write_shards(folder, counts):
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"s{shard}.tar", "w") as tar:
            for key in range(count):
                out = io.BytesIO()
                Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(out, "PNG")
                number += 1
                for name, content in ((f"{key}.png", out.getvalue()), (f"{key}.txt", b"a cat")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def stream_and_save(device, folder, workers):
    paths = shards.expand(f"{folder}/s*.tar")
    keys = [key for path in paths for key, _, _ in shards.pairs(path, shards.Report())]
    images = batches.StreamedImages(Colours(), paths, keys, 8, workers)
    share, found = distributed.joined().share(4), []
    for epoch in range(2):
        for rows, dense in images.epoch(0, epoch, 4, 0, device):
            own = (dense[:, 0, 0, 0] / 10).round().long()  # the number that an image's colour tells
            assert torch.equal(own, torch.from_numpy(rows)[share])
            found.append((epoch, rows.tolist(), own.tolist()))
    torch.save(found, f"{folder}/{distributed.joined().rank}.pt")


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_give_each_sample_to_one_process_once_an_epoch(tmp_path, workers):
    write_shards(tmp_path, (4, 3, 2, 3))  # six pairs each
    distributed.launch(2, stream_and_save, CPU, str(tmp_path), workers)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [batch[:2] for batch in found[0]] == [batch[:2] for batch in found[1]]  # both know whole batches
    for epoch in range(2):
        own = [[number for e, _, part in of_rank if e == epoch for number in part] for of_rank in found]
        assert sorted(own[0]) == [0, 1, 2, 3, 7, 8] and sorted(own[1]) == [4, 5, 6, 9, 10, 11]  # shards 0, 2 and 1, 3


def test_epochs_are_as_long_as_the_process_with_the_fewest_pairs_allows(tmp_path):
    write_shards(tmp_path, (4, 3, 2, 1))
    distributed.launch(2, stream_and_save, CPU, str(tmp_path), 0)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    assert [epoch for epoch, _, _ in found] == [0, 0, 1, 1]  # the second process has four pairs: two batches of two


def fail_in_one(device):
    if distributed.joined().rank == 1:
        raise RuntimeError("rank 1 breaks")
    torch.distributed.barrier()  # rank 0 waits for what never comes


def test_a_process_that_dies_ends_the_run_with_its_error():
    with pytest.raises(Exception, match="rank 1 breaks"):
        distributed.launch(2, fail_in_one, CPU)


def test_fewer_shards_than_processes_is_a_clear_error(tmp_path, monkeypatch):
    write_shards(tmp_path, (6,))
    paths = shards.expand(f"{tmp_path}/s*.tar")
    images = batches.StreamedImages(Colours(), paths, [f"s0/{i}" for i in range(6)], 8, 0)
    bank = TextBank.build(["a cat"] * 6, ["many {}."])
    monkeypatch.setattr(distributed, "joined", lambda: World(0, 2))
    settings = SETTINGS.model_copy(update={"batch": 2})
    with pytest.raises(ValueError, match="use more shards"):
        training.train(settings, 0, P.mgca, images, bank, np.zeros((2, 3), np.float16), tmp_path / "run.pt")


def resume_and_save(device, folder):
    """As train_and_save, but only the first process finds a checkpoint."""
    images, bank, texts = data()
    rank = distributed.joined().rank
    decoder, history, _ = training.train(SETTINGS, 0, P.mgca, images, bank, texts, f"{folder}/{rank}/run.pt", device)
    torch.save((decoder.state_dict(), len(history)), f"{folder}/{rank}.pt")


def test_all_resume_where_the_first_process_stood(tmp_path):
    distributed.launch(2, train_and_save, CPU, str(tmp_path))
    expected, _ = torch.load(tmp_path / "0.pt", weights_only=True)
    (tmp_path / "0").mkdir()
    (tmp_path / "run.pt").rename(tmp_path / "0" / "run.pt")
    distributed.launch(2, resume_and_save, CPU, str(tmp_path))
    for rank in range(2):
        weights, steps = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert steps == 5 and all(torch.equal(weights[name], expected[name]) for name in expected)


def kill_one(device):
    if distributed.joined().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def test_a_process_that_is_killed_ends_the_run():
    with pytest.raises(Exception, match="SIGKILL|closed by peer"):
        distributed.launch(2, kill_one, CPU)


def test_shares_are_equal_and_in_order():
    assert [list(range(12))[World(rank, 3).share(12)] for rank in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
