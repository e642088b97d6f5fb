"""Reports of `ovseg check-data`: counts by hand, and each kind of wrong data."""

import numpy as np
import pytest
from PIL import Image
from small import write_tar
from tiny import picture, save, write_benchmark

from ovseg.benchmarks.datasets import FolderBenchmark, LayoutBenchmark, ShardBenchmark
from ovseg.benchmarks.layouts import LAYOUTS
from ovseg.data_check import check_benchmark, check_pairs


def findings(report):
    """The warnings and notes of a report."""
    return [line for line in report if line.startswith(("warning: ", "note: "))]


def test_pixels_and_pictures_are_counted_by_stored_id(tmp_path):
    maps = [[[0, 0, 1], [3, 3, 255]], [[1, 1], [1, 3]], [[0], [1]]]
    report = check_benchmark(FolderBenchmark("street", write_benchmark(tmp_path, maps, ["road", "car", "sky", "tree"])))
    assert report[:2] == ["benchmark street: 3 of 3 pictures, 4 classes", "sizes: 1x2 to 3x2, median 2x2"]
    table = [" ".join(line.split()) for line in report[4:]]
    assert table == ["0 road 25.00 2", "1 car 41.67 3", "3 tree 25.00 2", "255 (ignored) 8.33 1", "in no picture: sky"]


def test_ids_without_a_class_are_warned_of_and_suspicious_ids_noted(tmp_path):
    many = f"{', '.join(f'{index} (first in 0)' for index in range(3, 8))}, and 4 more"
    masks = "all ids are 0 or 255, which is ignored: if these are masks of one class, they must hold 1 instead of 255"
    for number, (maps, unknown, note) in enumerate((
        ([[[0, 1]], [[2, 7]], [[1, 7]]], "7 (first in 1)", None), ([[[0, 1]], [[2, 1000]]], "1000 (first in 1)", None),
        ([[[*range(12)]]], many, None), ([[[0, 2]], [[1, 255]]], None, None),
        ([[[1, 2]], [[3, 255]]], "3 (first in 1)", "id 3 is one above the last class: are all ids one too high?"),
        ([[[0, 255]]], None, masks),
    )):  # fmt: skip
        expected = {f"warning: ids without a class: {unknown}"} if unknown else set()
        expected |= {f"note: {note}"} if note else set()
        benchmark = FolderBenchmark("street", write_benchmark(tmp_path / str(number), maps, "abc"))
        assert set(findings(check_benchmark(benchmark))) == expected


def test_unreadable_files_and_wrong_sizes_are_warned_of_and_the_others_counted(tmp_path):
    benchmark = FolderBenchmark("street", write_benchmark(tmp_path, [[[0, 1]], [[1, 1]], [[0, 0], [1, 0]]], "ab"))
    (tmp_path / "images/0.png").write_bytes(b"no picture")
    save(tmp_path / "images/1.png", picture(3, 4))
    report = check_benchmark(benchmark)
    assert "images/0.png" in findings(report)[0] and findings(report)[0].endswith("1: image is 4x3, label map 2x1")
    assert report[0].startswith("benchmark street: 2 of 3 pictures") and [line.split()[2] for line in report[4:6]] == ["50.00", "50.00"]
    for file in benchmark.files:
        file.write_bytes(b"no picture")
    assert findings(check_benchmark(benchmark))[-1] == "warning: no usable picture"


@pytest.mark.parametrize("name, last", [("coco_object", 170), ("ade20k", 150)])
def test_the_last_stored_id_of_a_layout_has_a_meaning_and_the_next_one_has_none(tmp_path, name, last):
    layout, ids = LAYOUTS[name], np.arange(last + 2, dtype=np.uint8)[None]
    for pattern, array in {layout.images: picture(*ids.shape), layout.labels: ids}.items():
        save(tmp_path / pattern.format(split=layout.evaluated, key="p"), array)
    report = check_benchmark(LayoutBenchmark(name, name, tmp_path, layout.evaluated))
    assert findings(report)[0] == f"warning: ids without a class: {last + 1} (first in p)"


def test_a_limit_takes_evenly_spread_pictures_and_shards_are_read_past_a_bad_sample(tmp_path):
    samples = {f"p{i}": {"png": Image.fromarray(picture(8, 8, i)), "seg.png": Image.new("L", (8, 8), i)} for i in range(6)}
    del samples["p2"]["seg.png"]
    (tmp_path / "classes.txt").write_text("\n".join("abcdef"))
    report = check_benchmark(ShardBenchmark("street", write_tar(tmp_path / "a.tar", samples), "seg.png", tmp_path / "classes.txt"), 3)
    assert [line.split()[0] for line in report[4:6]] == ["0", "4"] and report[0].startswith("benchmark street: 2 of 6")
    assert "sample p2" in findings(report)[0] and "has no seg.png" in findings(report)[0]


def shard(path, captions):
    path.parent.mkdir(exist_ok=True)
    return write_tar(path, {f"k{i}": {"png": Image.new("RGB", (12 + i, 10)), "txt": text.encode()} for i, text in enumerate(captions)})


def test_pairs_are_counted_and_bad_samples_by_kind(tmp_path):
    paths = [shard(tmp_path / "a.tar", ["a dog on a chair", "the red car", ""])]
    report = ["pairs: 2 in 1 of 1 shards", "sizes: 12x10 to 13x10, median 13x10", "skipped: 1 empty caption"]
    assert check_pairs(paths, 0.5) == report
    assert check_pairs(paths, 0.2) == [*report, "warning: 33.3% of the samples cannot be used; max_bad_fraction is 20.0%"]
    assert findings(check_pairs([shard(tmp_path / "b.tar", [])], 0.5)) == ["warning: no usable pair"]
    (tmp_path / "c.tar").touch()
    assert findings(check_pairs([*paths, str(tmp_path / "c.tar")], 0.9)) == ["warning: shards end early or cannot be read"]
    assert findings(check_pairs([*paths, shard(tmp_path / "other/a.tar", ["a cat"])], 0.9)) == ["warning: shards with the same name: a"]
    four = [shard(tmp_path / f"four/{name}.tar", ["a cat"] * 4) for name in "abcd"]
    titles = [check_pairs(four, 0.1, limit)[0] for limit in (2, 9, 0)]  # the first pairs of evenly spread shards
    assert titles == [f"pairs: {counts} of 4 shards" for counts in ("2 in 2", "8 in 4", "16 in 4")]
