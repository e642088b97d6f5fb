"""What `encode` keeps of benchmarks, once for those over the same pictures."""

import os

import numpy as np
import open_clip
import pytest
import torch
from tiny import SETTINGS, TINY

from ovseg.benchmarks.datasets import FolderBenchmark, open_all
from ovseg.benchmarks.encoding import encode_benchmarks
from ovseg.clip.dense import DENSE_MODES
from ovseg.clip.frozen import FrozenCLIP
from ovseg.segmentation.windows import cut_windows
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

ARRAYS = {"classes.npy", *(f"{mode}.npy" for mode in DENSE_MODES)}


def encode(clip, benchmarks, folder, modes=DENSE_MODES):
    encode_benchmarks(clip, open_all(benchmarks), SETTINGS, folder, modes, {})


def kept(folder):
    """Names of files by benchmark."""
    return {path.name: {file.name for file in path.iterdir()} for path in folder.iterdir() if path.is_dir()}


def check_encoded_as_alone(clip, benchmarks, together, alone):
    for name, settings in benchmarks.items():
        encode(clip, {name: settings}, alone / name)
        for array in ARRAYS:
            expected = np.load(alone / name / name / array)
            assert expected.std() > 0 and np.array_equal(np.load(together / name / array), expected)


def test_windows_are_encoded_in_the_order_of_pictures_and_classes_without_the_background(clip, mine, tmp_path):
    encode(clip, mine, tmp_path / "cache")
    windows = np.concatenate([cut_windows(image, SETTINGS)[0] for _, image, _ in open_all(mine)[0]])
    for mode in DENSE_MODES:
        found = np.load(tmp_path / "cache/mine" / f"{mode}.npy")
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, torch.cat([clip.encode_dense(window[None], mode) for window in windows]), rtol=1e-2, atol=1e-2)
    classes = np.load(tmp_path / "cache/mine/classes.npy")
    np.testing.assert_allclose(classes, clip.embed_classes(["cat", "sofa"], SETTINGS.templates), atol=1e-6)


def test_benchmarks_over_the_same_pictures_share_their_features(clip, sharing, tmp_path):
    encode(clip, sharing, tmp_path / "cache")
    assert kept(tmp_path / "cache") == {"things": ARRAYS, "apart": ARRAYS, "all": ARRAYS}
    things, apart, all_ = (tmp_path / "cache" / name for name in sharing)
    for array in ARRAYS - {"classes.npy"}:
        assert os.path.samefile(things / array, all_ / array) and not os.path.samefile(things / array, apart / array)
    assert len({(all_ / array).read_bytes() for array in ARRAYS}) == len(ARRAYS)  # no mode stands in for another
    check_encoded_as_alone(clip, sharing, tmp_path / "cache", tmp_path / "alone")


@pytest.mark.parametrize("names", [("things", "apart", "all"), ("all", "apart", "things")], ids=["same order", "reversed"])
@pytest.mark.parametrize("moved", [False, True], ids=["", "no longer the same pictures"])
def test_benchmarks_are_encoded_anew_over_an_earlier_run(clip, sharing, tmp_path, names, moved):
    torch.manual_seed(5)
    earlier = FrozenCLIP(open_clip.model.CLIP(**pretraining.model_config(TINY)), clip.tokenizer)
    encode(earlier, sharing, tmp_path / "cache")
    later = {name: sharing["apart" if moved and name == "all" else name] for name in names}
    encode(clip, later, tmp_path / "cache")
    check_encoded_as_alone(clip, later, tmp_path / "cache", tmp_path / "alone")
    with pytest.raises(AssertionError):  # what another CLIP leaves would be told apart
        check_encoded_as_alone(earlier, later, tmp_path / "cache", tmp_path / "earlier")


def test_pictures_are_told_apart_by_where_they_are(sharing, mine):
    things, apart, all_, folder = open_all(sharing | mine)
    assert things.source == all_.source and len({things.source, apart.source, folder.source}) == 3
    assert FolderBenchmark("again", f"{folder.folder}/").source == folder.source


@pytest.mark.parametrize("modes", [("clearclip",), ()], ids=["a mode", "text alone"])
def test_only_the_modes_asked_for_are_cached(clip, mine, sharing, tmp_path, modes):
    encode(clip, mine | sharing, tmp_path / "cache", modes)
    assert kept(tmp_path / "cache") == dict.fromkeys(mine | sharing, {"classes.npy", *(f"{mode}.npy" for mode in modes)})
