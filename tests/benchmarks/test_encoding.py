"""What `encode` keeps of benchmarks, once for those over the same pictures."""

import copy
import os

import numpy as np
import open_clip
import pytest
import torch
import webdataset as wds
from PIL import Image
from tiny import SETTINGS, TINY, changed, picture

from ovseg.benchmarks import encoding
from ovseg.benchmarks.datasets import FolderBenchmark, open_benchmarks
from ovseg.benchmarks.encoding import encode_benchmarks
from ovseg.clip.dense import DENSE_MODES
from ovseg.clip.frozen import FrozenCLIP
from ovseg.segmentation.windows import cut_windows
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

ARRAYS = {"classes.npy", *(f"{mode}.npy" for mode in DENSE_MODES)}


def encode(clip, benchmarks, folder, modes=DENSE_MODES):
    encode_benchmarks(clip, open_benchmarks(benchmarks), SETTINGS, folder, modes, {})


def kept(folder):
    """Names of arrays by benchmark. Each has its list of blocks beside it, and there is nothing else."""
    found = {path.name: {file.name for file in path.iterdir()} for path in folder.iterdir() if path.is_dir()}
    arrays = {name: {file for file in files if file.endswith(".npy")} for name, files in found.items()}
    for name, files in found.items():
        assert files - arrays[name] == {file.replace(".npy", ".blocks") for file in arrays[name]}
    return arrays


def check_encoded_as_alone(clip, benchmarks, together, alone):
    for name, settings in benchmarks.items():
        encode(clip, {name: settings}, alone / name)
        for array in ARRAYS:
            expected = np.load(alone / name / name / array)
            assert expected.std() > 0 and np.array_equal(np.load(together / name / array), expected)


def test_windows_are_encoded_in_the_order_of_pictures_and_classes_without_the_background(clip, mine, tmp_path):
    encode(clip, mine, tmp_path / "cache")
    windows = np.concatenate([cut_windows(image, SETTINGS)[0] for _, image, _ in open_benchmarks(mine)[0]])
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
    things, apart, all_, folder = open_benchmarks(sharing | mine)
    assert things.source == all_.source and len({things.source, apart.source, folder.source}) == 3
    assert FolderBenchmark("again", f"{folder.folder}/").source == folder.source


@pytest.mark.parametrize("modes", [("clearclip",), ()], ids=["a mode", "text alone"])
def test_only_the_modes_asked_for_are_cached(clip, mine, sharing, tmp_path, modes):
    encode(clip, mine | sharing, tmp_path / "cache", modes)
    assert kept(tmp_path / "cache") == dict.fromkeys(mine | sharing, {"classes.npy", *(f"{mode}.npy" for mode in modes)})


# ---- over an earlier run: what is encoded again, and what is kept


class Killed(BaseException):
    pass


class Counting:
    """A CLIP that counts the windows and names that it encodes, and is killed before one batch of them."""

    def __init__(self, clip, at=None):
        self.clip, self.at, self.batches, self.windows, self.names = clip, at, 0, 0, []

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def encode_modes(self, images, modes):
        if self.batches == self.at:
            raise Killed
        self.batches, self.windows = self.batches + 1, self.windows + len(images)
        return self.clip.encode_modes(images, modes)

    def embed_classes(self, names, templates):
        self.names += names
        return self.clip.embed_classes(names, templates)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def encoded(clip, benchmarks, folder, segment=SETTINGS, modes=DENSE_MODES):
    """(windows, names) that were encoded."""
    counting = Counting(clip)
    encode_benchmarks(counting, open_benchmarks(benchmarks), segment, folder, modes, {})
    return counting.windows, counting.names


@pytest.mark.parametrize("at", range(3))
def test_a_killed_run_goes_on_and_leaves_the_bytes_of_an_uninterrupted_one(clip, mine, tmp_path, at):
    total, _ = encoded(clip, mine, tmp_path / "whole")
    killed = Counting(clip, at)
    with pytest.raises(Killed):
        encode_benchmarks(killed, open_benchmarks(mine), SETTINGS, tmp_path / "killed", DENSE_MODES, {})
    assert killed.windows == at * SETTINGS.batch < total and not (tmp_path / "killed/suite.json").exists()
    assert not list((tmp_path / "killed").rglob("maskclip.npy"))
    assert encoded(clip, mine, tmp_path / "killed") == (total - killed.windows, [])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_benchmark_that_is_added_is_encoded_alone(clip, mine, sharing, tmp_path):
    encoded(clip, sharing, tmp_path / "cache")
    alone = encoded(clip, mine, tmp_path / "alone")
    for order in ({**sharing, **mine}, {**mine, **sharing}):
        assert encoded(clip, order, tmp_path / "cache") == alone  # neither first nor last disturbs the others
        encoded(clip, order, tmp_path / "anew")
        assert contents(tmp_path / "cache") == contents(tmp_path / "anew")
        assert encoded(clip, order, tmp_path / "cache") == (0, [])
        encoded(clip, sharing, tmp_path / "cache")
        assert set(kept(tmp_path / "cache")) == set(sharing)  # what was taken out is gone


@pytest.mark.parametrize("first, second", [("things", "all"), ("all", "things")])
def test_one_over_the_same_pictures_is_added_without_encoding_any(clip, sharing, tmp_path, first, second):
    encoded(clip, {first: sharing[first]}, tmp_path / "cache")
    for order in ((first, second), (second, first)):
        windows, _ = encoded(clip, {name: sharing[name] for name in order}, tmp_path / "cache")
        assert windows == 0
        check_encoded_as_alone(clip, {name: sharing[name] for name in order}, tmp_path / "cache", tmp_path / "alone")


CHANGES = {
    "window": {"segment": changed(window=24, stride=16)},
    "stride": {"segment": changed(stride=24)},
    "short_side": {"segment": changed(short_side=40)},
    "max_ratio": {"segment": changed(max_ratio=1.5)},
    "resize": {"segment": changed(resize="opencv-bilinear")},
    "batch": {"segment": changed(batch=3)},
}


@pytest.mark.parametrize("change", [*CHANGES, "picture", "weights", "precision", "positions", "code"])
def test_whatever_windows_depend_on_encodes_them_again(clip, mine, tmp_path, monkeypatch, change):
    encoded(clip, mine, tmp_path / "cache")
    other, values = clip, CHANGES.get(change, {})
    if change == "picture":
        Image.fromarray(picture(40, 70, 9)).save(tmp_path / "mine/images/1.png")  # under the same name, of the same size
    elif change in ("weights", "precision", "positions"):
        precision = "bfloat16" if change == "precision" else "float32"
        positions = "scale-factor" if change == "positions" else "size"
        other = FrozenCLIP(copy.deepcopy(clip.clip), clip.tokenizer, precision, positions=positions)
        if change == "weights":
            next(other.clip.parameters()).data.view(-1)[0] += 1
    elif change == "code":
        monkeypatch.setattr(encoding.files, "code", lambda *files: "other")
    windows, _ = encoded(other, mine, tmp_path / "cache", **values)
    whole = encoded(other, mine, tmp_path / "anew", **values)
    assert windows == whole[0] > 0 and contents(tmp_path / "cache") == contents(tmp_path / "anew")


def test_names_and_templates_encode_no_window_again(clip, mine, tmp_path):
    encoded(clip, mine, tmp_path / "cache")
    (tmp_path / "mine/classes.txt").write_text("background\ncat\nchair\n")
    assert encoded(clip, mine, tmp_path / "cache") == (0, ["cat", "chair"])
    assert encoded(clip, mine, tmp_path / "cache", changed(templates=["my {}."])) == (0, ["cat", "chair"])


def test_shards_that_hold_other_pictures_under_the_same_name_are_encoded_again(clip, sharing, tmp_path):
    encoded(clip, sharing, tmp_path / "cache")
    with wds.TarWriter(sharing["apart"].shards) as tar:
        for seed in (2, 4):
            labels = np.zeros((40, 50 + seed), np.uint8)
            tar.write({"__key__": f"p{seed}", "png": picture(40, 50 + seed, seed), "things.png": labels, "all.png": labels})
    windows, names = encoded(clip, sharing, tmp_path / "cache")
    assert (windows, names) == (encoded(clip, {"apart": sharing["apart"]}, tmp_path / "alone")[0], [])
    check_encoded_as_alone(clip, sharing, tmp_path / "cache", tmp_path / "alone")


@pytest.mark.parametrize("damage", ["a byte", "the end", "all"])
def test_a_damaged_array_is_repaired_in_the_mode_that_needs_it(clip, mine, tmp_path, damage):
    encoded(clip, mine, tmp_path / "cache")
    before, file = contents(tmp_path / "cache"), tmp_path / "cache/mine/sclip.npy"
    data = bytearray(file.read_bytes())
    if damage == "a byte":
        data[-1] ^= 1
    file.write_bytes(data if damage == "a byte" else data[:-7] if damage == "the end" else b"")
    asked, real = [], clip.encode_modes
    counting = Counting(clip)
    counting.encode_modes = lambda images, modes: asked.append(modes) or real(images, modes)
    encode_benchmarks(counting, open_benchmarks(mine), SETTINGS, tmp_path / "cache", DENSE_MODES, {})
    assert asked and all(modes == ["sclip"] for modes in asked) and (len(asked) == 1) == (damage == "a byte")
    assert contents(tmp_path / "cache") == before


def test_windows_that_are_no_longer_cached_are_deleted(clip, mine, tmp_path):
    encoded(clip, mine, tmp_path / "cache")
    assert encoded(clip, mine, tmp_path / "cache", modes=()) == (0, [])
    assert kept(tmp_path / "cache") == {"mine": {"classes.npy"}}
