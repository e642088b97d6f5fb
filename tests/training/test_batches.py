"""Batches of cached features and of streamed images: which pairs they hold, in which order, with which features."""

import numpy as np
import pytest
import torch
from small import CPU, P, changed, colour, make_pairs, same, stream, write_array
from tiny import bank_of

from ovseg.clip.frozen import FrozenCLIP
from ovseg.training import loop
from ovseg.training.batches import CachedImages, StreamedImages, open_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def epoch_of(images, seed=0, epoch=0, batch=6, skip=0):
    """[(rows, features)] of an epoch."""
    return [(rows, dense.numpy()) for rows, dense, _ in images.epoch(seed, epoch, batch, skip, CPU)]


@pytest.fixture(params=["cached", "streamed"])
def images(request, tmp_path):
    """20 pairs, whose features are the colour of their number."""
    if request.param == "streamed":
        return stream(tmp_path)
    return CachedImages(np.stack([np.broadcast_to(np.array(colour(n)).reshape(3, 1, 1), (3, 4, 4)) for n in range(20)]).astype(np.float16))


def test_an_epoch_has_full_batches_of_distinct_pairs_with_their_features(images):
    batches = epoch_of(images, epoch=2)
    rows = np.concatenate([rows for rows, _ in batches])
    assert len(batches) == images.batches(6) == 3 and len(rows) == len(set(rows.tolist())) == 18 and set(rows.tolist()) <= set(range(20))
    for rows, dense in batches:
        assert dense.shape == (6, 3, 4, 4) and dense.dtype == np.float32
        for row, feature in zip(rows, dense, strict=True):
            assert (feature == np.array(colour(row)).reshape(3, 1, 1)).all()
    for skip in (1, 3):
        rest = epoch_of(images, epoch=2, skip=skip)
        assert len(rest) == 3 - skip
        for (rows, dense), (again, dense_again) in zip(batches[skip:], rest, strict=True):
            assert np.array_equal(rows, again) and np.array_equal(dense, dense_again)
    assert [tuple(feature[:, 0, 0].int().tolist()) for feature in images.first(9, CPU)] == [colour(n) for n in range(9)]


def test_the_order_follows_seed_and_epoch(images):
    def order(seed, epoch):
        return tuple(np.concatenate([rows for rows, _ in epoch_of(images, seed, epoch)]).tolist())

    assert order(0, 0) == order(0, 0)
    assert len({order(0, 0), order(0, 1), order(1, 0), tuple(range(18))}) == 4


def test_worker_processes_give_each_pair_once_in_a_fixed_order(tmp_path):
    images = stream(tmp_path, workers=2)
    first, again = ([rows.tolist() for rows, _ in epoch_of(images, batch=5)] for _ in range(2))
    assert first == again and sorted(row for rows in first for row in rows) == list(range(20))


def test_a_streamed_batch_is_drawn_from_the_whole_shard(tmp_path):
    images = stream(tmp_path, counts=(400,))
    rows = epoch_of(images, batch=50)[0][0]
    assert all((rows // 100 == quarter).sum() > 4 for quarter in range(4))  # 12.5 of each quarter expected


def test_pairs_are_opened_with_cached_features_or_else_streamed(tmp_path, monkeypatch, clip):
    """Both know what they are made of."""
    images = stream(tmp_path)
    bank_of(["a cat"] * 20, ["many {}."]).save(tmp_path)
    (tmp_path / "shards.txt").write_text("".join(f"{path}\n" for path in images.paths))
    (tmp_path / "pairs.txt").write_text("".join(f"{key}\n" for key in images.keys))
    monkeypatch.setattr(FrozenCLIP, "open", lambda settings, device: clip)

    def opened(**values):
        return open_pairs(P.clip.model_copy(update={"image_size": 32} | values), 0, CPU, tmp_path, tmp_path)

    write_array(tmp_path / "texts.npy", np.ones((2, 3)))
    streamed = opened()
    assert isinstance(streamed.images, StreamedImages) and streamed.images.keys == images.keys
    np.testing.assert_allclose(streamed.images.first(1, CPU), clip.encode_dense(np.full((1, 32, 32, 3), colour(0), np.uint8)), atol=1e-5)
    assert streamed.made_of == opened(batch=7).made_of and streamed.made_of != opened(dense="clip").made_of
    array = np.random.default_rng(0).normal(size=(20, 3, 2, 2)).astype(np.float16)
    write_array(tmp_path / "pairs.npy", array)
    pairs = opened()
    assert isinstance(pairs.images, CachedImages) and np.array_equal(pairs.images.array, array)
    assert pairs.paths == images.paths and list(pairs.bank.texts) == ["a cat", "many cat."] and pairs.texts.shape == (2, 3)
    for name in ("pairs", "texts"):
        before = opened().made_of
        write_array(tmp_path / f"{name}.npy", np.zeros((20, 3, 2, 2)))
        assert opened().made_of != before
    (tmp_path / "pairs.npy").unlink()
    before = opened().made_of
    (tmp_path / "pairs.txt").write_text("".join(f"{key}\n" for key in images.keys[1:]))
    assert opened().made_of != before


def test_a_killed_training_on_a_stream_ends_with_the_same_weights(clip, tmp_path):
    """MixReorg mixes patches in CLIP, which encodes the images of the same batch once more."""
    images = stream(tmp_path, clip=clip, size=32)
    for _, dense, encode in images.epoch(0, 0, 6, 0, CPU):
        source = torch.arange(6).roll(1)[:, None, None].expand(6, 4, 4)  # each image's patches are those of the one before it
        torch.testing.assert_close(encode(mixing=(0, source)), dense.roll(1, 0), rtol=1e-4, atol=1e-4)
    bank = bank_of(["a dog", "the sea", "a cat", "a tree"] * 5, ["many {}."])
    pairs = make_pairs(images=images, bank=bank, texts=clip.encode_text(bank.texts).numpy())
    mixing = {"mixreorg": P.mixreorg.model_copy(update={"images": 2, "block": 0})}
    p = changed(mixing, method="mgca+mixreorg", batch=6, epochs=2.0)

    class Killed(Exception):
        pass

    class Dying(StreamedImages):
        def epoch(self, seed, epoch, *arguments):
            for index, batch in enumerate(super().epoch(seed, epoch, *arguments)):
                if (epoch, index) == (1, 2):
                    raise Killed
                yield batch

    whole, history, _ = loop.train(p, 0, pairs, tmp_path / "whole.pt")
    with pytest.raises(Killed):
        loop.train(p, 0, pairs._replace(images=Dying(**vars(images))), tmp_path / "killed.pt")
    resumed, rows, _ = loop.train(p, 0, pairs, tmp_path / "killed.pt")
    assert len(history) == 6 and rows == history and same(whole.state_dict(), resumed.state_dict())
    after_clip = changed({"mixreorg": mixing["mixreorg"].model_copy(update={"block": None})}, method="mgca+mixreorg", batch=6, epochs=0.3)
    (row,) = loop.train(after_clip, 0, pairs, tmp_path / "other.pt")[1]
    assert row["original"] == history[0]["original"] and row["mixed"] != history[0]["mixed"]
