"""Batches of cached features and of streamed images: which pairs they hold, in which order, with which features."""

import ctypes
import multiprocessing
import os
import random
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset as wds
from small import CPU, P, changed, colour, make_pairs, same, stream, write_array
from tiny import bank_of

from ovseg.clip.frozen import FrozenCLIP
from ovseg.data import shards
from ovseg.training import batches, loop
from ovseg.training.batches import SHUFFLE, CachedImages, StreamedImages, open_pairs
from ovseg.training.distributed import World


def epoch_of(images, seed=0, epoch=0, batch=6, skip=0):
    """[(rows, features)] of an epoch."""
    return [(rows, dense.numpy()) for rows, dense, _ in images.epoch(seed, epoch, batch, skip, CPU)]


def order(images, seed=0, epoch=0, batch=6):
    return tuple(np.concatenate([rows for rows, _ in epoch_of(images, seed, epoch, batch)]).tolist())


@pytest.fixture(params=["cached", "streamed"])
def images(request, tmp_path):
    """20 pairs, whose features are the colour of their number."""
    if request.param == "streamed":
        return stream(tmp_path)
    return CachedImages(np.stack([np.broadcast_to(np.array(colour(n)).reshape(3, 1, 1), (3, 4, 4)) for n in range(20)]).astype(np.float16))


def test_an_epoch_has_full_batches_of_distinct_pairs_with_their_features(images):
    batches, rows = epoch_of(images, epoch=2), order(images, epoch=2)
    assert len(batches) == images.batches(6) == 3 and len(rows) == len(set(rows)) == 18 and set(rows) <= set(range(20))
    for rows, dense in batches:
        assert dense.shape == (6, 3, 4, 4) and dense.dtype == np.float32
        assert (dense == np.array([colour(row) for row in rows])[..., None, None]).all()
    for skip in (1, 3):
        rest = epoch_of(images, epoch=2, skip=skip)
        assert len(rest) == 3 - skip
        for first, again in zip(batches[skip:], rest, strict=True):
            assert all(map(np.array_equal, first, again))
    assert [tuple(feature[:, 0, 0].int().tolist()) for feature in images.first(9, CPU)] == [colour(n) for n in range(9)]


def test_the_order_follows_seed_and_epoch(images):
    assert order(images) == order(images)
    assert len({order(images), order(images, epoch=1), order(images, seed=1), tuple(range(18))}) == 4


@pytest.mark.parametrize(("counts", "workers", "batch"), [((40, 3, 17, 1, 9), 2, 6), ((8, 7, 5), 0, 4)])
def test_workers_take_turns_pair_by_pair_however_they_send_them(tmp_path, counts, workers, batch):
    images, queues, expected = stream(tmp_path, counts, workers=workers), [], []
    paths = np.random.default_rng((3, 1)).permutation(images.paths).tolist()
    for worker in range(max(1, workers)):  # each reads its own shards through a shuffle buffer of its own
        samples = (sample for path in paths[worker :: max(1, workers)] for sample in shards.read_samples(path))
        shuffled = wds.shuffle(SHUFFLE, initial=SHUFFLE, rng=random.Random(hash((3, 1))))(samples)
        names = [f"{Path(sample['__url__']).stem}/{sample['__key__']}" for sample in shuffled]
        queues.append([images.keys.index(name) for name in names if name in images.keys])
    while any(queues):
        expected += [queue.pop(0) for queue in queues if queue]
    assert list(order(images, seed=3, epoch=1, batch=batch)) == expected[: len(expected) // batch * batch]
    assert sorted(expected) == list(range(sum(counts)))


def test_a_buffer_of_large_samples_holds_fewer(tmp_path, monkeypatch):
    images = stream(tmp_path, (60,))
    for held in (1, 5, 60):  # in a buffer of n samples, none is drawn more than n - 1 places before its turn
        monkeypatch.setattr(batches, "SHUFFLE_BYTES", os.path.getsize(images.paths[0]) * (held - 0.5) // 60)
        assert held / 2 - 1 < max(order(images, batch=60) - np.arange(60)) < held


def test_an_epoch_ends_with_the_process_of_the_fewest_pairs(monkeypatch):
    monkeypatch.setattr(batches.distributed, "joined", lambda: World(0, 8))
    for count in (20, 16):
        keys = [f"{shard}/{n}" for shard in range(count) for n in range(10)]
        assert StreamedImages(None, [f"{shard}.tar" for shard in range(count)], keys, 8, 0).batches(16) == 10  # of 2 images a process


def test_cached_features_are_read_a_few_batches_ahead():
    read = []

    class Disk(np.ndarray):
        def __getitem__(self, rows):
            read.append(rows)
            return np.asarray(self)[rows]

    images = CachedImages(np.arange(120).reshape(120, 1, 1, 1).view(Disk))
    for number, (rows, dense, _) in enumerate(images.epoch(0, 0, 4, 2, CPU), 1):
        assert dense.flatten().tolist() == rows.tolist() and len(read) <= number + batches.READERS
    assert number == len(read) == 28


def stream_with_little(images):
    """Stream with few open files and, as root, 1 MB of shared memory. It leaves the process so."""
    if os.geteuid() == 0 and ctypes.CDLL(None).unshare(0x00020000) == 0:  # CLONE_NEWNS: mounts of its own
        os.system("mount --make-rprivate / && mount -t tmpfs -o size=1m tmpfs /dev/shm")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30,) * 2)
    assert [dense.nbytes for _, dense in epoch_of(images, batch=150)] == [150 * 64 * 64 * 3] * 2


def test_a_stream_needs_neither_shared_memory_nor_many_open_files(tmp_path):
    images = stream(tmp_path, (160, 150), SimpleNamespace(encode_dense=torch.from_numpy), size=64, workers=2)
    process = multiprocessing.get_context("fork").Process(target=stream_with_little, args=(images,))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0  # None: it hangs


def test_a_streamed_batch_is_drawn_from_the_whole_shard(tmp_path):
    rows = np.array(order(stream(tmp_path, counts=(400,)), batch=50)[:50])
    assert all((rows // 100 == quarter).sum() > 4 for quarter in range(4))  # 12.5 of each quarter expected


def test_pairs_are_opened_with_cached_features_or_else_streamed(tmp_path, monkeypatch, clip):
    """Both know what they are made of."""
    images = stream(tmp_path)
    bank_of(["a cat"] * 20, ["many {}."]).save(tmp_path)
    (tmp_path / "shards.txt").write_text("".join(f"{path}\n" for path in images.paths))
    (tmp_path / "pairs.txt").write_text("".join(f"{key}\n" for key in images.keys))
    monkeypatch.setattr(FrozenCLIP, "open", lambda settings, device: clip)

    def opened(**values):
        return open_pairs(changed({"clip": P.clip.model_copy(update={"image_size": 32} | values)}), CPU, tmp_path, tmp_path)

    write_array(tmp_path / "texts.npy", np.ones((2, 3)))
    streamed = opened()
    assert isinstance(streamed.images, StreamedImages) and streamed.images.keys == images.keys
    np.testing.assert_allclose(streamed.images.first(1, CPU), clip.encode_dense(np.full((1, 32, 32, 3), colour(0), np.uint8)), atol=1e-5)
    assert streamed.made_of == opened(batch=7).made_of and streamed.made_of != opened(dense="clip").made_of
    (tmp_path / "pairs.txt").write_text("".join(f"{key}\n" for key in images.keys[1:]))
    assert opened().made_of != streamed.made_of
    array = np.random.default_rng(0).normal(size=(20, 3, 2, 2)).astype(np.float16)
    write_array(tmp_path / "pairs.npy", array)
    pairs = opened()
    assert isinstance(pairs.images, CachedImages) and np.array_equal(pairs.images.array, array)
    assert pairs.paths == images.paths and list(pairs.bank.texts) == ["a cat", "many cat."] and pairs.texts.shape == (2, 3)
    for name in ("pairs", "texts"):
        before = opened().made_of
        write_array(tmp_path / f"{name}.npy", np.zeros((20, 3, 2, 2)))
        assert opened().made_of != before


def test_a_killed_training_on_a_stream_ends_with_the_same_weights(clip, tmp_path):
    """MixReorg mixes patches in CLIP, which encodes the images of the same batch once more."""
    images = stream(tmp_path, clip=clip, size=32)
    for _, dense, encode in images.epoch(0, 0, 6, 0, CPU):
        source = torch.arange(6).roll(1)[:, None, None].expand(6, 4, 4)  # each image's patches are those of the one before it
        torch.testing.assert_close(encode(mixing=(0, source)), dense.roll(1, 0), rtol=1e-4, atol=1e-4)
    bank = bank_of(["a dog", "the sea", "a cat", "a tree"] * 5, ["many {}."])
    pairs = make_pairs(images=images, bank=bank, texts=clip.encode_text(bank.texts).numpy())

    def train(name, block=0, epochs=2.0, images=images):
        sections = {"mixreorg": P.mixreorg.model_copy(update={"images": 2, "block": block})}
        p = changed(sections, method="mgca+mixreorg", batch=6, epochs=epochs, warmup_epochs=0.1)
        return loop.train(p, 0, pairs._replace(images=images), tmp_path / name)[:2]

    class Dying(StreamedImages):
        def epoch(self, seed, epoch, *arguments):
            for index, batch in enumerate(super().epoch(seed, epoch, *arguments)):
                if (epoch, index) == (1, 2):
                    raise KeyboardInterrupt
                yield batch

    whole, history = train("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train("killed.pt", images=Dying(**images._asdict()))
    resumed, rows = train("killed.pt")
    assert len(history) == 6 and rows == history and same(whole.state_dict(), resumed.state_dict())
    (row,) = train("after CLIP.pt", block=None, epochs=0.3)[1]
    assert row["original"] == history[0]["original"] and row["mixed"] != history[0]["mixed"]
