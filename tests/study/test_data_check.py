"""What `ovseg check-data` finds: counts by hand, and each kind of wrong data that users have."""

from types import SimpleNamespace

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tiny import picture

from ovseg.benchmarks.datasets import FolderBenchmark, LayoutBenchmark, ShardBenchmark
from ovseg.study import data_check
from ovseg.study.data_check import agreement, check_agreement, check_benchmark, check_pairs, count_labels, count_pairs


def folder(path, maps, classes):
    """A folder benchmark of label maps (H, W), with random pictures of their sizes."""
    for index, labels in enumerate(maps):
        for part, array in (("images", picture(*np.shape(labels), index)), ("labels", np.array(labels, np.uint8))):
            (path / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path / part / f"{index}.png")
    (path / "classes.txt").write_text("\n".join(classes) + "\n")
    return FolderBenchmark("street", path)


def warnings(benchmark, limit=0):
    return check_benchmark(benchmark, count_labels(benchmark, limit))


def test_pixels_and_pictures_are_counted_by_stored_id(tmp_path):
    benchmark = folder(tmp_path, [[[0, 0, 1], [2, 2, 255]], [[1, 1], [1, 2]]], ["road", "car", "tree"])
    counts = count_labels(benchmark, 0)
    assert counts.pixels == {0: 2, 1: 4, 2: 3, 255: 1} and counts.pictures == {0: 1, 1: 2, 2: 2, 255: 1}
    assert counts.sizes == [(3, 2), (2, 2)] and counts.first == {0: "0", 1: "0", 2: "0", 255: "0"} and warnings(benchmark) == []
    head, sizes, *table = (line.split() for line in data_check.describe_benchmark(benchmark, counts).splitlines())
    assert head == "benchmark street: 2 of 2 pictures, 3 classes".split()
    assert sizes == "sizes: 2x2 to 3x2, median 3x2".split()
    assert table[2:] == [
        ["0", "road", "20.00%", "1"],
        ["1", "car", "40.00%", "2"],
        ["2", "tree", "30.00%", "2"],
        ["255", "(ignored)", "10.00%", "1"],
    ]


def test_a_limit_takes_pictures_evenly_spread(tmp_path):
    benchmark = folder(tmp_path, [[[index, 9]] for index in range(9)], "abcdefghij")
    assert sorted(count_labels(benchmark, 3).pixels) == [0, 3, 6, 9]
    assert sorted(count_labels(benchmark, 100).pixels) == sorted(count_labels(benchmark, 0).pixels) == list(range(10))


@pytest.mark.parametrize(
    "classes, maps, message",
    [
        ("abc", [[[1, 2]], [[3, 255]]], "one too high: the id above the last class is there, and id 0 is nowhere"),
        ("abc", [[[0, 1]], [[2, 3]]], "one too high: the id above the last class is there, 0 may stand for no class"),
        ("abc", [[[1, 2]], [[2, 1]]], "may be off by one: every class is there but the first, a"),
        ("abc", [[[0, 1]], [[0, 1]]], "may be off by one: every class is there but the last, c"),
        (["background", "a", "b"], [[[1, 2]], [[2, 1]]], "no pixel is background"),
        (["background", "a", "b"], [[[0, 1]], [[0, 1]]], "every class is there but the last, b"),
        ("abcd", [[[0, 0]], [[2, 2]]], "nearly all label maps hold one id only"),
    ],
)
def test_labels_that_look_shifted_or_empty_are_warned_of(tmp_path, classes, maps, message):
    assert message in "\n".join(warnings(folder(tmp_path, maps, classes)))


def test_ids_without_a_class_are_named_with_their_share_and_a_picture(tmp_path):
    found = warnings(folder(tmp_path, [[[0, 1]], [[2, 200]], [[1, 200]]], "abc"))
    assert found == ["id 200 belongs to no class: 33.3% of pixels, first in 1"]
    many = warnings(folder(tmp_path / "many", [[[*range(20)]]], "abc"))
    assert len(many) == 6 and many[-1] == "12 more ids belong to no class, up to 19"


def test_sixteen_bits_are_read_as_they_are(tmp_path):
    benchmark = folder(tmp_path, [[[0, 1]]], "ab")
    Image.fromarray(np.array([[0, 1000]], np.uint16)).save(tmp_path / "labels/0.png")
    assert "id 1000 belongs to no class: 50.0% of pixels, first in 0" in warnings(benchmark)


@pytest.mark.parametrize("ids, right", [([0, *range(1, 151)], True), ([255, *range(150)], False), ([*range(1, 152)], False)])
def test_a_layout_that_ignores_zero_tells_labels_that_were_reduced_before(tmp_path, ids, right):
    """ADE20K as it comes counts classes from 1, and 0 is no class; reduced already, 255 is no class and classes count from 0."""
    for part, array in (("images", picture(1, len(ids))), ("annotations", np.array([ids], np.uint8))):
        (tmp_path / part / "validation").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / part / f"validation/a.{'jpg' if part == 'images' else 'png'}")
    found = warnings(LayoutBenchmark("ade20k", "ade20k", tmp_path, "validation"))
    assert (found == []) == right and ("off by one" in str(found) or "one too high" in str(found)) != right


def test_what_cannot_be_read_is_told_and_the_rest_counted(tmp_path):
    benchmark = folder(tmp_path, [[[0, 1]], [[1, 1]], [[0, 0], [1, 0]]], "ab")
    (tmp_path / "images/0.png").write_bytes(b"no picture")
    Image.fromarray(picture(3, 4)).save(tmp_path / "images/1.png")
    broken, size = warnings(benchmark)
    assert "images/0.png" in broken and size == "1: image is 4x3, label map 2x1"
    assert count_labels(benchmark, 0).pixels == {1: 3, 0: 3}


def test_shards_are_read_past_a_bad_sample(tmp_path):
    with wds.TarWriter(str(tmp_path / "a.tar")) as tar:
        for index, labels in enumerate([[[0, 1]], None, [[1, 2]], [[2, 2]]]):
            extra = {} if labels is None else {"seg.png": np.tile(np.array(labels, np.uint8), (8, 4))}
            tar.write({"__key__": f"p{index}", "png": picture(8, 8, index), **extra})
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    benchmark = ShardBenchmark("street", str(tmp_path / "a.tar"), "seg.png", tmp_path / "classes.txt")
    assert warnings(benchmark) == [f"sample p1 of {tmp_path}/a.tar has no seg.png"]
    assert count_labels(benchmark, 0).pixels == {0: 32, 1: 64, 2: 96}
    assert count_labels(benchmark, 2).pictures == {0: 1, 1: 2, 2: 1}  # p0 and p2


@pytest.mark.parametrize("shift, background", [(0, False), (1, False), (-1, False), (0, True), (1, True)])
def test_a_model_tells_labels_that_are_shifted(tmp_path, shift, background):
    """A model that is right on four pixels of five, and labels that are shifted against what it says."""
    classes = ["background", *"abcd"] if background else [*"abcde"]
    truth = [np.random.default_rng(index).integers(1, 4, (20, 20)) for index in range(3)]
    shifted = folder(tmp_path, [labels - shift for labels in truth], classes)

    def segment(image, names, background_asked):
        assert names == shifted.named and background_asked == background
        predicted = truth[[np.array_equal(np.asarray(image), picture(20, 20, index)) for index in range(3)].index(True)].copy()
        predicted[:4] = 0
        return SimpleNamespace(labels=predicted)

    found = agreement(SimpleNamespace(segment=segment), shifted)
    assert max(found, key=found.get) == shift
    if background:
        assert found[shift] == pytest.approx(1.0)  # what it calls background, and labels of 0, do not count
    told = check_agreement(found)
    assert bool(told) == bool(shift) and (not shift or f"as label {shift:+d}" in told[0])


def shard(path, texts):
    with wds.TarWriter(str(path)) as tar:
        for index, text in enumerate(texts):
            tar.write({"__key__": f"k{index}", "png": picture(10, 12 + index, index), "txt": text})
    return str(path)


def test_pairs_are_counted_and_odd_captions_warned_of(tmp_path):
    good = count_pairs([shard(tmp_path / "a.tar", ["a dog on a chair", "the red car", ""])], 0)
    assert good.captions == ["a dog on a chair", "the red car"] and good.without_nouns == 0 and good.sizes == [(12, 10), (13, 10)]
    assert check_pairs(good, 0.5) == [] and check_pairs(good, 0.2) == [
        "33.3% of the samples cannot be used: data.max_bad_fraction allows 20.0%"
    ]
    lines = data_check.describe_pairs(["a.tar"], good).splitlines()
    assert [line.strip() for line in lines[1:5]] == [
        "skipped: 1 empty caption",
        "sizes: 12x10 to 13x10, median 13x10",
        "words in a caption: 3 to 5, median 4",
        "2 distinct captions, 0 without a noun",
    ]
    odd = count_pairs([shard(tmp_path / "b.tar", ["1234"] * 5)], 0)
    repeated, nouns = check_pairs(odd, 0.5)
    assert repeated.startswith("4 of 5 captions are repeated") and nouns.startswith("5 of 5 captions have no English noun")


def test_a_limit_of_pairs_spreads_over_shards(tmp_path):
    paths = [shard(tmp_path / f"{name}.tar", [f"{name} {index}" for index in range(4)]) for name in "abcd"]
    assert count_pairs(paths, 2).captions == ["a 0", "c 0"]
    assert count_pairs(paths, 8).captions == [f"{name} {index}" for name in "abcd" for index in range(2)]
