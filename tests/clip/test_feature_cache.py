"""Encoding texts and training images into the cache, and what happens when the shards have changed."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny import P

from ovseg.clip import encoding, features

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = P.clip.model_copy(update={"image_size": 32, "batch": 2})


def images(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def shard(tmp_path):
    """A shard of images() with captions."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for key, image in enumerate(images()):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            for name, content in ((f"{key}.png", out.getvalue()), (f"{key}.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return tmp_path / "s.tar"


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
