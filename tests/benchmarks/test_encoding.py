"""What `encode` stores of benchmarks, once for those over the same pictures, and what it keeps over runs."""

import copy
import os

import pytest
from PIL import Image
from tiny import SETTINGS, changed, contents, picture

from ovseg.benchmarks.datasets import open_benchmarks
from ovseg.benchmarks.encoding import encode_benchmarks
from ovseg.clip.dense import DENSE_MODES
from ovseg.clip.frozen import FrozenCLIP

CLASSES, WINDOWS = {"classes.npy", "classes.json"}, {f"{mode}{end}" for mode in DENSE_MODES for end in (".npy", ".json")}


def encoded(clip, benchmarks, folder, segment=SETTINGS, modes=DENSE_MODES, at=None):
    """Encode, killed before window `at`; returns (number of windows, names) that were encoded."""
    windows, names, counting = [], [], copy.copy(clip)

    def encode_modes(images, modes):
        if len(windows) == at:
            raise KeyboardInterrupt
        windows.extend(images)
        return clip.encode_modes(images, modes)

    counting.encode_modes = encode_modes
    counting.embed_classes = lambda given, templates: names.extend(given) or clip.embed_classes(given, templates)
    encode_benchmarks(counting, open_benchmarks(benchmarks), segment, folder, modes)
    return len(windows), names


def names_in(folder):
    return {path.name: names for path in folder.iterdir() if (names := {file.name for file in path.iterdir()})}


def test_benchmarks_over_the_same_pictures_store_their_windows_once(clip, sharing, tmp_path):
    encoded(clip, sharing, tmp_path / "cache")
    assert names_in(tmp_path / "cache") == {"things": CLASSES | WINDOWS, "apart": CLASSES | WINDOWS, "all": CLASSES}
    for name in sharing:
        encoded(clip, {name: sharing[name]}, tmp_path / name)
        for path, content in contents(tmp_path / "cache" / name).items():
            assert (tmp_path / name / name / path).read_bytes() == content


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_killed_run_resumes_with_the_same_bytes(clip, mine, tmp_path, at):
    total, names = encoded(clip, mine, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encoded(clip, mine, tmp_path / "killed", at=at)
    if at == 8:  # as if it was killed within the write of a later mode
        os.truncate(tmp_path / "killed/mine/sclip.npy.part", os.path.getsize(tmp_path / "killed/mine/sclip.npy.part") - 1)
    assert not (tmp_path / "killed/mine/maskclip.npy").exists()
    assert encoded(clip, mine, tmp_path / "killed") == (total - min(at, 4), []) and total > 8
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and names == ["cat", "sofa"]


def test_a_benchmark_that_is_added_is_encoded_alone_and_others_are_deleted(clip, mine, sharing, tmp_path):
    encoded(clip, sharing, tmp_path / "cache")
    alone = encoded(clip, mine, tmp_path / "alone")
    for order in (sharing | mine, mine | sharing):
        assert encoded(clip, order, tmp_path / "cache") == alone
        assert encoded(clip, order, tmp_path / "cache") == (0, [])
        assert encoded(clip, sharing, tmp_path / "cache", modes=("sclip",)) == (0, [])
        assert names_in(tmp_path / "cache") == dict.fromkeys(("things", "apart"), CLASSES | {"sclip.npy", "sclip.json"}) | {"all": CLASSES}
        encoded(clip, sharing, tmp_path / "cache")
    assert encoded(clip, sharing, tmp_path / "cache", modes=()) == (0, [])
    assert names_in(tmp_path / "cache") == dict.fromkeys(sharing, CLASSES)


CHANGES = [{"window": 24}, {"stride": 24}, {"short_side": 40}, {"max_ratio": 1.5}, {"resize": "opencv-bilinear"}, {"batch": 3}]


@pytest.mark.parametrize("change", [*CHANGES, "picture", "weights"], ids=str)
def test_whatever_windows_depend_on_encodes_them_again(clip, mine, tmp_path, change):
    modes = ("maskclip", "clip")
    encoded(clip, mine, tmp_path / "cache", modes=modes)
    other, segment = clip, changed(**change) if isinstance(change, dict) else SETTINGS
    if change == "picture":
        Image.fromarray(picture(40, 70, 9)).save(tmp_path / "mine/images/1.png")  # under the same name
    elif change == "weights":
        other = FrozenCLIP(copy.deepcopy(clip.clip), clip.tokenizer)
        next(other.clip.parameters()).data.view(-1)[0] += 1
    windows, _ = encoded(other, mine, tmp_path / "cache", segment, modes)
    assert windows == encoded(other, mine, tmp_path / "anew", segment, modes)[0] > 0
    assert contents(tmp_path / "cache") == contents(tmp_path / "anew")


def test_names_templates_and_label_maps_encode_no_window_again(clip, mine, tmp_path):
    encoded(clip, mine, tmp_path / "cache")
    os.utime(tmp_path / "mine/labels/1.png", (1, 1))
    (tmp_path / "mine/classes.txt").write_text("background\ncat\nchair\n")
    assert encoded(clip, mine, tmp_path / "cache") == (0, ["cat", "chair"])
    assert encoded(clip, mine, tmp_path / "cache", changed(templates=["my {}."])) == (0, ["cat", "chair"])
