"""What `ovseg check-data` finds: counts by hand, and each kind of wrong data that users have."""

from types import SimpleNamespace

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tiny import picture

from ovseg.benchmarks.datasets import FolderBenchmark, LayoutBenchmark, NotHere, ShardBenchmark
from ovseg.benchmarks.layouts import LAYOUTS
from ovseg.study import data_check
from ovseg.study.data_check import agreement, check_agreement, check_labels, check_pairs, count_labels, count_pairs, note_labels


def folder(path, maps, classes):
    """A folder benchmark of label maps (H, W), with random pictures of their sizes."""
    for index, labels in enumerate(maps):
        for part, array in (("images", picture(*np.shape(labels), index)), ("labels", np.array(labels, np.uint8))):
            (path / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path / part / f"{index}.png")
    (path / "classes.txt").write_text("\n".join(classes) + "\n")
    return FolderBenchmark("street", path)


def warnings(benchmark, limit=0):
    return check_labels(benchmark, count_labels(benchmark, limit))


def notes(benchmark):
    return note_labels(benchmark, count_labels(benchmark, 0))


def test_pixels_and_pictures_are_counted_by_stored_id(tmp_path):
    benchmark = folder(tmp_path, [[[0, 0, 1], [2, 2, 255]], [[1, 1], [1, 2]]], ["road", "car", "tree"])
    counts = count_labels(benchmark, 0)
    assert counts.pixels == {0: 2, 1: 4, 2: 3, 255: 1} and counts.pictures == {0: 1, 1: 2, 2: 2, 255: 1}
    assert (
        counts.sizes == [(3, 2), (2, 2)]
        and counts.first == {0: "0", 1: "0", 2: "0", 255: "0"}
        and warnings(benchmark) == notes(benchmark) == []
    )
    head, sizes, *table = (line.split() for line in data_check.describe_labels(benchmark, counts).splitlines())
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


FIVE = [[[0, 1, 2, 3, 4]]] * 5  # ids of five pictures


@pytest.mark.parametrize(
    "classes, maps, message",
    [
        ("abc", [[[1, 2]], [[3, 255]]], "ids go one above the last class: do they count from 1 where 0 is expected"),
        ("abc", [[[0, 1]], [[2, 3]]], "expected (or is 3 for pixels of no class, which is 255 here)?"),
        ("abcde", [[[1, 2, 3, 4]]] * 5, "the first class, a, is in no picture, and most others are: do ids count from 1"),
        ("abcde", [[[1, 2, 4]]] * 5, "the first class, a"),
        (["background", *"abcd"], [[[1, 2, 3, 4]]] * 5, "do ids count classes without the background, so that all are one too low?"),
        ("abcdef", FIVE, "every class but the last, f, is there: are all ids one too low?"),
        ("abc", [[[0, 255]]], "only ids 0 and 255 are there: are these masks of one class?"),
    ],
)
def test_ids_that_may_be_shifted_are_noted(tmp_path, classes, maps, message):
    benchmark = folder(tmp_path, maps, classes)
    (note,) = notes(benchmark)
    assert message in note and bool(warnings(benchmark)) == ("ids go one above" in note)


@pytest.mark.parametrize(
    "classes, maps",
    [
        ("abcde", FIVE),
        (["background", *"abcd"], FIVE),
        ("abcdefgh", [[[0, 1, 2, 3, 255]]] * 5),  # some classes are rare
        ("abcdef", FIVE[:4]),  # too few pictures to tell
        ("ab", [[[0, 0]]] * 5),
    ],
)
def test_ids_that_say_nothing_of_a_shift_are_not_noted(tmp_path, classes, maps):
    benchmark = folder(tmp_path, maps, classes)
    assert warnings(benchmark) == notes(benchmark) == []


def test_ids_without_a_class_are_named_with_their_share_and_a_picture(tmp_path):
    found = warnings(folder(tmp_path, [[[0, 1]], [[2, 200]], [[1, 200]]], "abc"))
    assert found == ["id 200 belongs to no class: 33.3% of pixels, first in 1"]
    many = warnings(folder(tmp_path / "many", [[[*range(20)]]], "abc"))
    assert len(many) == 6 and many[-1] == "12 more ids, up to 19, belong to no class"


@pytest.mark.parametrize("dtype, stored", [(np.uint16, 1000), (np.int32, 100_000), (np.int32, -7)])
def test_ids_of_more_bits_are_read_as_they_are(tmp_path, dtype, stored):
    benchmark = folder(tmp_path, [[[0, 1]]], "ab")
    Image.fromarray(np.array([[0, stored]], dtype)).save(tmp_path / "labels/0.png", "TIFF" if dtype == np.int32 else "PNG")
    assert warnings(benchmark) == [f"id {stored} belongs to no class: 50.0% of pixels, first in 0"]


RIGHT = {
    "voc": [*range(21), 255],
    "voc20": [*range(21), 255],
    "context": [*range(60)],
    "context59": [*range(60)],
    "coco_object": [*range(171), 255],
    "coco_stuff": [*range(171), 255],
    "cityscapes": [*range(19), 255],
    "ade20k": [*range(151)],
}
WRONG = {  # warnings, notes
    "ade20k reduced before": ("ade20k", [*range(150), 255], "", "have ids been reduced by one already?"),
    "ade20k from 2": ("ade20k", [*range(2, 152)], "id 151 belongs to no class", "do they count from 2 where 1 is expected"),
    "context59 reduced before": ("context59", [*range(59), 255], "", "have ids been reduced by one already?"),
    "coco_object not converted": ("coco_object", [*range(182), 255], "id 171 belongs to no class", ""),
    "coco_stuff not converted": ("coco_stuff", [*range(182), 255], "id 171 belongs to no class", ""),
    "cityscapes' own ids": ("cityscapes", [*range(34)], "id 19 belongs to no class", ""),
}


def layout_benchmark(path, name, ids):
    """A benchmark in a layout of five pictures whose label maps all hold those ids."""
    layout = LAYOUTS[name]
    for number in range(5):
        for pattern, array in ((layout.images, picture(1, len(ids), number)), (layout.labels, np.array([ids], np.uint8))):
            file = path / pattern.format(split=layout.evaluated, key=f"city/p{number}" if name == "cityscapes" else f"p{number}")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    if layout.listing:
        file = path / layout.listing.format(split=layout.evaluated)
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"p{number}\n" for number in range(5)))
    return LayoutBenchmark(name, name, path, layout.evaluated)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_papers_benchmarks_as_they_should_be_are_right(tmp_path, name):
    benchmark = layout_benchmark(tmp_path, name, RIGHT[name])
    assert warnings(benchmark) == notes(benchmark) == []


@pytest.mark.parametrize("case", WRONG)
def test_the_papers_benchmarks_in_a_wrong_form_are_told(tmp_path, case):
    name, ids, warning, note = WRONG[case]
    benchmark = layout_benchmark(tmp_path, name, ids)
    for sentences, expected in ((warnings(benchmark), warning), (notes(benchmark), note)):
        assert bool(sentences) == bool(expected) and expected in " ".join(sentences)


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


def test_many_broken_files_are_summed_up(tmp_path):
    benchmark = folder(tmp_path, [[[0, 1]]] * 8, "ab")
    for file in benchmark.files:
        file.write_bytes(b"no picture")
    *each, rest, none = warnings(benchmark)
    assert len(each) == 5 and rest == "3 more that cannot be read or have another size" and none == "no picture could be read"
    assert data_check.describe_labels(benchmark, count_labels(benchmark, 0)) == "benchmark street: 0 of 8 pictures, 2 classes"


@pytest.mark.parametrize("content", [b"", b"no tar"])
def test_shards_without_a_picture_are_told(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    benchmark = ShardBenchmark("street", str(tmp_path / "a.tar"), "seg.png", tmp_path / "classes.txt")
    assert warnings(benchmark, 10) == [f"{tmp_path}/a.tar: truncated tar", "no picture could be read"] and notes(benchmark) == []


def test_a_benchmark_of_which_some_shards_are_missing_is_not_taken_for_absent(tmp_path):
    (tmp_path / "a.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"benchmark street: 1 of 2 shards") as caught:
        ShardBenchmark("street", f"{tmp_path}/{{a,b}}.tar", "seg.png", tmp_path / "classes.txt")
    assert not isinstance(caught.value, NotHere)


def test_sizes_of_equal_area_are_told_apart(tmp_path):
    benchmark = folder(tmp_path, [[[0, 1]], [[0], [1]]], "ab")
    assert "sizes: 1x2 to 2x1" in data_check.describe_labels(benchmark, count_labels(benchmark, 0))


class Model:
    """Gives the label map that was written for each picture of 20 x 20 pixels."""

    def __init__(self, maps):
        self.maps = {picture(20, 20, index).tobytes(): labels for index, labels in enumerate(maps)}
        self.asked = []

    def segment(self, image, names, background):
        self.asked.append((names, background))
        return SimpleNamespace(labels=self.maps[np.asarray(image).tobytes()])


@pytest.mark.parametrize("shift, background", [(0, False), (1, False), (-1, False), (0, True), (1, True)])
def test_a_model_tells_labels_that_are_shifted(tmp_path, shift, background):
    """A model that is right on four pixels of five, and labels that are shifted against what it says."""
    classes = ["background", *"abcdefg"] if background else [*"abcdefgh"]
    truth = [np.random.default_rng(index).integers(1, 7, (20, 20)) for index in range(3)]
    predicted = [np.concatenate([np.zeros((4, 20), int), labels[4:]]) for labels in truth]
    shifted, model = folder(tmp_path, [labels - shift for labels in truth], classes), Model(predicted)
    found = agreement(model, shifted)
    assert model.asked == [(shifted.named, background)] * 3
    pixels, right = np.zeros(9), np.zeros(9)
    for labels, guess in zip(truth, predicted, strict=True):
        judged = (guess > 0) & (labels - shift > 0) if background else np.full(labels.shape, True)
        np.add.at(pixels, labels[judged], 1), np.add.at(right, labels[judged & (guess == labels)], 1)
    assert found[shift] == pytest.approx((right[pixels > 0] / pixels[pixels > 0]).mean())
    told = check_agreement(found)
    assert bool(told) == bool(shift) and (not shift or f"as label {shift:+d}" in told[0])


@pytest.mark.parametrize("found, told", [((0.0, 0.3, 0.59), 0), ((0.0, 0.3, 0.61), 1), ((0.19, 0, 0), 0), ((0.21, 0, 0), 1), (None, 0)])
def test_a_shift_has_to_explain_much_and_twice_as_much(found, told):
    assert len(check_agreement(found and dict(zip((-1, 0, 1), found, strict=True)))) == told


def test_one_class_that_is_mistaken_for_its_neighbour_is_no_shift(tmp_path):
    """Nearly all pixels are of class 0, which the model calls 1: of the pixels most are shifted, of the classes one is."""
    truth = [np.concatenate([np.zeros((17, 20), int), np.tile(np.arange(20) % 6, (3, 1))])] * 2
    predicted = [np.where(labels == 0, 1, labels) for labels in truth]
    found = agreement(Model(predicted), folder(tmp_path, truth, "abcdef"))
    assert found == pytest.approx({-1: 0, 0: 5 / 6, 1: 1 / 6}) and check_agreement(found) == []


def test_pictures_for_a_model_are_evenly_spread_and_few_classes_say_nothing(tmp_path):
    benchmark = folder(tmp_path, [np.full((20, 20), index) for index in range(9)], "abcdefghi")
    model = Model([np.full((20, 20), index) for index in range(9)])
    assert agreement(model, benchmark, 5) == {-1: 0, 0: 1, 1: 0} and len(model.asked) == 5
    assert agreement(model, benchmark, 4) is None  # of 0, 3, 6 alone


def test_a_model_that_fails_costs_its_own_warning_alone(tmp_path):
    class Broken:
        def segment(self, *arguments):
            raise RuntimeError("CUDA out of\nmemory")

    data = data_check.Data(benchmarks=[folder(tmp_path, FIVE, "abcde")])
    (found,) = data_check.check_data(data, 0, Broken())
    assert "5 of 5 pictures" in found.text and found.warnings == ["the model cannot segment its pictures: CUDA out of memory"]


def shard(path, texts):
    with wds.TarWriter(str(path)) as tar:
        for index, text in enumerate(texts):
            tar.write({"__key__": f"k{index}", "png": picture(10, 12 + index, index), "txt": text})
    return str(path)


def test_pairs_are_counted_and_odd_captions_warned_of(tmp_path):
    good = count_pairs([shard(tmp_path / "a.tar", ["a dog on a chair", "the red car", ""])], 0)
    assert good.captions == ["a dog on a chair", "the red car"] and good.without_nouns == 0 and good.sizes == [(12, 10), (13, 10)]
    paths = [str(tmp_path / "a.tar")]
    assert check_pairs(paths, good, 0.5) == [] and check_pairs(paths, good, 0.2) == [
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
    repeated, nouns = check_pairs(paths, odd, 0.5)
    assert repeated.startswith("4 of 5 captions are repeated") and nouns.startswith("5 of 5 captions have no English noun")


def test_shards_of_pairs_that_are_broken_empty_or_of_one_name_are_told(tmp_path):
    good = shard(tmp_path / "a.tar", ["a dog", "a red car"])
    (tmp_path / "b.tar").touch()
    paths = [good, str(tmp_path / "b.tar")]
    assert check_pairs(paths, count_pairs(paths, 0), 0.9) == ["1 shards end early or cannot be read"]
    empty = shard(tmp_path / "c.tar", [])
    assert check_pairs([empty], count_pairs([empty], 0), 0.9) == ["no usable pair"]
    (tmp_path / "other").mkdir()
    twice = [good, shard(tmp_path / "other/a.tar", ["a cat"])]
    assert check_pairs(twice, count_pairs(twice, 0), 0.9) == ["2 shards are named a: names have to be distinct"]


def test_a_limit_of_pairs_spreads_over_shards(tmp_path):
    paths = [shard(tmp_path / f"{name}.tar", [f"{name} {index}" for index in range(4)]) for name in "abcd"]
    assert count_pairs(paths, 2).captions == ["a 0", "c 0"] and count_pairs(paths, 2).shards == 2
    assert count_pairs(paths, 6).captions == ["a 0", "a 1", "b 0", "b 1", "c 0", "c 1"]
    assert count_pairs(paths, 8).captions == [f"{name} {index}" for name in "abcd" for index in range(2)]
