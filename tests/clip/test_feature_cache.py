"""Encoding texts and training images into the cache, and what happens when the shards have changed."""

import copy
import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny import P, reading

from ovseg.clip import encoding, features
from ovseg.clip.frozen import FrozenCLIP

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = P.clip.model_copy(update={"image_size": 32, "batch": 2})


def images(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_shard(path, images):
    """A shard of images with captions."""
    with tarfile.open(path, "w") as tar:
        for key, image in enumerate(images):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            for name, content in ((f"{key}.png", out.getvalue()), (f"{key}.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "s.tar", images())


def test_each_image_and_text_has_its_row(clip, shard, tmp_path):
    encoding.encode_pairs(clip, [shard], [f"s/{n}" for n in range(5)], SETTINGS, tmp_path)
    found = features.as_tensor(features.open_cached(tmp_path / "pairs.npy"))
    np.testing.assert_allclose(found, clip.encode_dense(images()), rtol=1e-2, atol=1e-2)
    encoding.encode_texts(clip, ["a cat", "the sea"], tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), clip.encode_text(["a cat", "the sea"]), rtol=1e-2, atol=1e-2)
    assert found.shape[1:] == (clip.width, 4, 4) and features.open_cached(tmp_path / "absent.npy") is None


@pytest.mark.parametrize("keys, named", [("0124", "s/4"), ("01234 5", "s/5"), ("0123", "s/4"), ("1234", "s/1")])
def test_shards_that_have_changed_are_a_clear_error(clip, shard, tmp_path, keys, named):
    with pytest.raises(ValueError, match=f"{named}: the shards have changed since `prepare` read them"):
        encoding.encode_pairs(clip, [shard], [f"s/{key}" for key in keys if key != " "], SETTINGS, tmp_path)


# ---- over an earlier run


class Killed(BaseException):
    pass


class Counting:
    """A CLIP that counts what it encodes, and is killed before one batch."""

    def __init__(self, clip, at=None):
        self.clip, self.at, self.batches = clip, at, 0

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def _count(self):
        if self.batches == self.at:
            raise Killed
        self.batches += 1

    def encode_dense(self, images):
        self._count()
        return self.clip.encode_dense(images)

    def encode_text(self, texts):
        self._count()
        return self.clip.encode_text(texts)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def two_shards(tmp_path):
    """Shards of 5 and 4 pairs, and the keys of these: in batches of 2, blocks lie in one shard, in both and in the other."""
    many = np.random.default_rng(3).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    paths = [write_shard(tmp_path / "s.tar", many[:5]), write_shard(tmp_path / "t.tar", many[5:])]
    return paths, [f"s/{n}" for n in range(5)] + [f"t/{n}" for n in range(4)]


def pairs_encoded(clip, pairs, folder, settings=SETTINGS):
    """Batches of pairs that were encoded."""
    counting = Counting(clip)
    encoding.encode_pairs(counting, *pairs, settings, folder)
    return counting.batches


@pytest.mark.parametrize("at", range(5))
def test_killed_pairs_go_on_and_leave_the_bytes_of_an_uninterrupted_run(clip, two_shards, tmp_path, monkeypatch, at):
    assert pairs_encoded(clip, two_shards, tmp_path / "whole") == 5
    with pytest.raises(Killed):
        encoding.encode_pairs(Counting(clip, at), *two_shards, SETTINGS, tmp_path / "killed")
    assert features.open_cached(tmp_path / "killed/pairs.npy") is None  # training does not take it for a finished one
    read, real = [], encoding.shards.pairs
    monkeypatch.setattr(encoding.shards, "pairs", lambda path, report: read.append(path.stem) or real(path, report))
    assert pairs_encoded(clip, two_shards, tmp_path / "killed") == 5 - at
    assert read == (["t"] if at >= 3 else ["s", "t"])  # of blocks 0 to 2 are all pairs of the first shard
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert pairs_encoded(clip, two_shards, tmp_path / "killed") == 0


@pytest.mark.parametrize("change", ["weights", "mode", "positions", "image_size", "batch", "pixels", "keys"])
def test_whatever_pairs_depend_on_encodes_them_again(clip, two_shards, tmp_path, change):
    pairs_encoded(clip, two_shards, tmp_path / "cache")
    (paths, keys), settings, other = two_shards, SETTINGS, clip
    if change == "weights":
        other = FrozenCLIP(copy.deepcopy(clip.clip), clip.tokenizer)
        next(other.clip.parameters()).data.view(-1)[0] += 1
    elif change == "mode":
        other = reading(clip, "sclip")
    elif change == "positions":
        other = FrozenCLIP(copy.deepcopy(clip.clip), clip.tokenizer, positions="scale-factor")
    elif change == "pixels":  # of one picture
        many = images(4)
        many[0, 0, 0, 0] += 1
        write_shard(paths[1], many)
    elif change == "keys":
        paths, keys = paths[::-1], keys[5:] + keys[:5]
    else:
        settings = SETTINGS.model_copy(update={change: {"image_size": 16, "batch": 3}[change]})
    whole = pairs_encoded(other, (paths, keys), tmp_path / "anew", settings)
    assert pairs_encoded(other, (paths, keys), tmp_path / "cache", settings) == whole > 0
    assert contents(tmp_path / "cache") == contents(tmp_path / "anew")


def test_killed_texts_go_on_and_other_texts_are_encoded_again(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "TEXTS", 2)
    texts = [f"a {name}" for name in ("cat", "dog", "boat", "tree", "car")]
    encoding.encode_texts(clip, texts, tmp_path / "whole")
    with pytest.raises(Killed):
        encoding.encode_texts(Counting(clip, 1), texts, tmp_path / "killed")
    for expected in (2, 0):
        counting = Counting(clip)
        encoding.encode_texts(counting, texts, tmp_path / "killed")
        assert counting.batches == expected and contents(tmp_path / "killed") == contents(tmp_path / "whole")
    for other in (texts[::-1], [*texts[:4], "a car\na"], ["a cat\na dog", *texts[2:], "a car"]):
        counting = Counting(clip)
        encoding.encode_texts(counting, other, tmp_path / "killed")
        assert counting.batches == 3
        np.testing.assert_allclose(np.load(tmp_path / "killed/texts.npy"), clip.encode_text(other), rtol=1e-2, atol=1e-2)


def test_pairs_that_are_no_longer_cached_are_deleted(clip, two_shards, tmp_path):
    pairs_encoded(clip, two_shards, tmp_path / "cache")
    encoding.discard_pairs(tmp_path / "cache")
    assert contents(tmp_path / "cache") == {} and features.open_cached(tmp_path / "cache/pairs.npy") is None
