"""Batches of cached features and of streamed images: which pairs they hold, in which order, with which features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import CPU, P, changed, colour, make_bank, stream, write_cache
from tiny import bank_of

from ovseg.clip.frozen import FrozenCLIP
from ovseg.methods import training
from ovseg.methods.batches import CachedImages, StreamedImages, open_pairs

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


def test_an_epoch_has_full_batches_of_distinct_pairs_with_their_images(images):
    found = epoch_of(images)
    rows = np.concatenate([rows for rows, _ in found])
    assert len(found) == images.batches(6) == 3 and len(rows) == len(set(rows.tolist())) == 18 and set(rows.tolist()) <= set(range(20))
    for rows, dense in found:
        assert dense.shape == (6, 3, 4, 4) and dense.dtype == np.float32
        for row, feature in zip(rows, dense, strict=True):
            assert (feature == np.array(colour(row)).reshape(3, 1, 1)).all()


def test_the_order_follows_seed_and_epoch(images):
    def order(seed, epoch):
        return tuple(np.concatenate([rows for rows, _ in epoch_of(images, seed, epoch)]).tolist())

    assert order(0, 0) == order(0, 0)
    assert len({order(0, 0), order(0, 1), order(1, 0), tuple(range(18))}) == 4


@pytest.mark.parametrize("skip", [1, 3])
def test_skipped_batches_are_the_first(images, skip):
    whole, rest = epoch_of(images, epoch=2), epoch_of(images, epoch=2, skip=skip)
    assert len(rest) == 3 - skip
    for (rows, dense), (again, dense_again) in zip(whole[skip:], rest, strict=True):
        assert np.array_equal(rows, again) and np.array_equal(dense, dense_again)


def test_the_first_pairs_are_the_first(images):
    assert [tuple(feature[:, 0, 0].int().tolist()) for feature in images.first(9, CPU)] == [colour(n) for n in range(9)]


def test_worker_processes_give_every_pair_once_in_an_order_of_their_own_seed(tmp_path):
    images = stream(tmp_path, workers=2)
    first, again = ([rows.tolist() for rows, _ in epoch_of(images, batch=5)] for _ in range(2))
    assert first == again and sorted(row for rows in first for row in rows) == list(range(20))


def test_a_streamed_batch_draws_from_the_whole_shard_and_not_from_its_head(tmp_path):
    images = stream(tmp_path, counts=(400,))
    rows = epoch_of(images, batch=50)[0][0]
    assert all((rows // 100 == quarter).sum() > 4 for quarter in range(4))  # 12.5 of each quarter expected


def prepared(folder, images):
    """What `prepare` and `encode` leave in a folder, features of images aside."""
    bank_of(["a cat"] * len(images.keys), ["many {}."]).save(folder)
    (folder / "shards.txt").write_text("".join(f"{path}\n" for path in images.paths))
    (folder / "pairs.txt").write_text("".join(f"{key}\n" for key in images.keys))
    write_cache(folder / "texts.npy", np.ones((2, 3)))


def test_images_are_cached_features_where_there_are_some(tmp_path):
    images = stream(tmp_path)
    prepared(tmp_path, images)
    array = np.random.default_rng(0).normal(size=(20, 3, 2, 2)).astype(np.float16)
    write_cache(tmp_path / "pairs.npy", array)
    pairs = open_pairs(P.clip, 0, CPU, tmp_path, tmp_path)
    assert isinstance(pairs.images, CachedImages) and np.array_equal(pairs.images.array, array)
    assert pairs.paths == images.paths and list(pairs.bank.texts) == ["a cat", "many cat."] and pairs.texts.shape == (2, 3)


def test_images_are_streamed_where_none_are_cached(tmp_path, monkeypatch, clip):
    prepared(tmp_path, stream(tmp_path))
    monkeypatch.setattr(FrozenCLIP, "open", lambda settings, device: clip)
    images = open_pairs(P.clip.model_copy(update={"image_size": 32}), 0, CPU, tmp_path, tmp_path).images
    assert isinstance(images, StreamedImages) and images.keys == stream(tmp_path).keys
    np.testing.assert_allclose(images.first(1, CPU), clip.encode_dense(np.full((1, 32, 32, 3), colour(0), np.uint8)), atol=1e-5)


def test_methods_that_run_clip_in_each_step_train_and_see_the_images_of_their_features(clip, tmp_path):
    images, bank = stream(tmp_path, clip=clip, size=32), make_bank(20)
    for rows, dense, pixels in images.epoch(0, 0, 6, 0, CPU):
        assert torch.equal(clip.encode_dense(pixels), dense)
        assert [tuple(image[0, 0]) for image in pixels] == [colour(row) for row in rows]
    texts = clip.encode_text(bank.texts).numpy()
    sections = {"mixreorg": P.mixreorg.model_copy(update={"images": 2}), "tcl": P.tcl}

    def train(name, **values):
        changes = {method: section.model_copy(update=values.get(method, {})) for method, section in sections.items()}
        return training.train(changed(batch=6, epochs=1.0), 0, changes, images, bank, texts, Path(tmp_path, name))[1]

    cached, by_images = train("a.pt"), train("b.pt", mixreorg={"block": 0}, tcl={"image_level": True})
    assert "image" not in cached[0] and all(np.isfinite(row["image"]) for row in by_images)
    assert cached[0]["original"] == by_images[0]["original"] and cached[0]["mixed"] != by_images[0]["mixed"]
    assert cached[0]["contrast"] == by_images[0]["contrast"]  # the same texts are drawn


def test_training_on_a_stream_survives_being_killed(clip, tmp_path):
    images, bank = stream(tmp_path, clip=clip, size=32), make_bank(20)
    texts = clip.encode_text(bank.texts).numpy()

    class Killed(Exception):
        pass

    class Dying(StreamedImages):
        def epoch(self, seed, epoch, *arguments):
            for index, batch in enumerate(super().epoch(seed, epoch, *arguments)):
                if (epoch, index) == (1, 2):
                    raise Killed
                yield batch

    def train(images, name):
        return training.train(changed(batch=6, epochs=2.0), 0, {"mgca": P.mgca}, images, bank, texts, Path(tmp_path, name))

    whole, history, _ = train(images, "whole.pt")
    with pytest.raises(Killed):
        train(Dying(**vars(images)), "killed.pt")
    resumed, rows, _ = train(images, "killed.pt")
    assert len(history) == 6 and rows == history
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
