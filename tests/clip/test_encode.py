"""Arrays of encoded texts and images: their rows, what is kept over runs, and kill -9."""

import copy
import functools
import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from small import write_tar
from tiny import P, contents

from ovseg.clip import encode
from ovseg.data import shards

SETTINGS = P.clip.model_copy(update={"image_size": 32, "batch": 2})
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
KEYS = [f"s/{n}" for n in range(5)] + [f"t/{n}" for n in range(5, 9)]  # in batches of 2, one lies in both shards


@pytest.fixture
def paths(tmp_path):
    for name, rows in (("s", range(5)), ("t", range(5, 9))):
        write_tar(tmp_path / f"{name}.tar", {str(row): {"png": IMAGES[row], "txt": "a cat"} for row in rows})
    return [tmp_path / "s.tar", tmp_path / "t.tar"]


def encode_all(clip, paths, folder, at=None, settings=SETTINGS, keys=KEYS):
    """Encode pairs and texts, killed by SIGKILL before batch `at`; returns the number of batches."""
    batches, counting = [], copy.copy(clip)

    def counted(inputs, real):
        if len(batches) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(inputs)
        return real(inputs)

    counting.encode_dense, counting.encode_text = (functools.partial(counted, real=real) for real in (clip.encode_dense, clip.encode_text))
    encode.encode_pairs(counting, paths, keys, settings, folder)
    encode.encode_texts(counting, ["a cat", "the sea"], folder)
    return len(batches)


def test_each_image_and_text_has_its_row(clip, paths, tmp_path):
    assert encode_all(clip, paths, tmp_path / "cache") == 6
    pairs, texts = (encode.open_cached(tmp_path / f"cache/{name}.npy") for name in ("pairs", "texts"))
    expected = [clip.encode_dense(IMAGES[row : row + 2]) for row in range(0, 9, 2)]
    assert np.array_equal(pairs, torch.cat(expected).numpy().astype(np.float16))  # batch by batch, to the last bit
    assert np.array_equal(texts, clip.encode_text(["a cat", "the sea"]).numpy().astype(np.float16))
    np.testing.assert_array_equal(encode.as_tensor(pairs[3:4]), pairs[3:4].astype(np.float32))
    for name, array in (("pairs", pairs), ("texts", texts)):
        about = json.loads((tmp_path / f"cache/{name}.json").read_text())
        assert about["rows"] == len(array) and about["made_with"]["clip"] == clip.fingerprint
        assert about["sha256"] == hashlib.sha256((tmp_path / f"cache/{name}.npy").read_bytes()).hexdigest()
    assert encode.open_cached(tmp_path / "absent.npy") is None


def test_whole_images_are_encoded_at_the_size_that_clip_was_trained_at(clip, paths, tmp_path):
    encode.encode_pairs(clip, paths, KEYS, SETTINGS.model_copy(update={"image_size": 16}), tmp_path, "images")
    expected = clip.clip.visual(clip.normalise(IMAGES)).detach().numpy()
    np.testing.assert_allclose(encode.open_cached(tmp_path / "images.npy"), expected, atol=2e-3)


def test_an_encoding_killed_at_any_batch_resumes_with_the_same_bytes(clip, paths, tmp_path):
    encode_all(clip, paths, tmp_path / "whole")
    for at, left in ((0, 6), (1, 5), (4, 2), (5, 1)):
        folder = tmp_path / str(at)
        if not (child := os.fork()):
            encode_all(clip, paths, folder, at)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert (folder / "pairs.npy").exists() == (at == 5)
        if at == 1:
            with open(folder / "pairs.npy.part", "ab") as part:
                part.write(b"part of a batch" * 50)
        assert encode_all(clip, paths, folder) == left and contents(folder) == contents(tmp_path / "whole")


def test_shards_whose_rows_are_finished_are_not_read_again(paths):
    paths[0].unlink()
    squares = encode.Squares(32)[list(encode._samples(paths, KEYS[6:]))]
    assert np.array_equal(squares, IMAGES[6:])


def test_rows_keep_the_order_of_keys_over_processes_and_bad_samples(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    files = [np.full((2000 if n == 0 else 32, 32, 3), 3 * n, np.uint8) for n in range(57)]  # the first 16 take longer than the next
    files[5::9] = [b"broken"] * 6
    path = write_tar(tmp_path / "a.tar", {str(n): {"png": file, "txt": "a cat"} for n, file in enumerate(files)})
    keys = [key for key, _, _ in shards.read_pairs(path, shards.Report())]
    encode_all(clip, [path], tmp_path, settings=SETTINGS.model_copy(update={"batch": 51}), keys=keys)
    expected = clip.encode_dense(np.stack([np.full((32, 32, 3), 3 * n, np.uint8) for n in range(57) if n % 9 != 5]))
    assert np.array_equal(encode.open_cached(tmp_path / "pairs.npy"), expected.numpy().astype(np.float16))


def test_arrays_are_kept_until_what_they_depend_on_changes(clip, paths, tmp_path):
    encode_all(clip, paths, tmp_path / "cache")
    assert encode_all(clip, paths, tmp_path / "cache") == 0
    os.utime(paths[0], (1, 1))
    for changed in ({}, {"batch": 3}, {"image_size": 16}):
        settings, other = SETTINGS.model_copy(update=changed), tmp_path / f"{changed}"
        assert encode_all(clip, paths, tmp_path / "cache", settings=settings) == encode_all(clip, paths, other, settings=settings) - 1
        assert contents(tmp_path / "cache") == contents(other)  # the texts were kept
    (tmp_path / "cache/pairs.npy").unlink()
    assert encode_all(clip, paths, tmp_path / "cache", settings=settings) == 5


@pytest.mark.parametrize("keys, named", [("012345", "s/5"), ("0213", "s/2"), ("9", "s/9"), (None, "t/5")])
def test_shards_that_have_changed_are_an_error(clip, paths, tmp_path, keys, named):
    with pytest.raises(ValueError, match=f"{named}: the shards have changed since `prepare` read them; run it again"):
        encode_all(clip, paths[:1], tmp_path / "cache", keys=[f"s/{key}" for key in keys] if keys else KEYS)


def test_a_full_disk_names_the_array(tmp_path):
    writer = encode.ArrayWriter(tmp_path / "x.npy", (100_000,), {}, 1)
    writer.file = open("/dev/full", "wb")
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.npy'"):
        writer.append(torch.ones(1, 100_000))
