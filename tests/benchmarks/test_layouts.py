"""The paper's benchmarks on tiny folders in MMSegmentation's layouts, written out here path by path."""

import typing

import numpy as np
import pytest
from PIL import Image

from ovseg import schema
from ovseg.benchmarks.calibration import open_calibration
from ovseg.benchmarks.datasets import NotHere, open_benchmark, open_benchmarks
from ovseg.benchmarks.layouts import CLASSES, LAYOUTS

# name: listing, then (key, image, label map) of two evaluated pictures in the order expected, then of one for calibration
FILES = {
    "voc": (
        "ImageSets/Segmentation/{}.txt",
        ("2007_000061", "JPEGImages/2007_000061.jpg", "SegmentationClass/2007_000061.png"),
        ("2007_000033", "JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png"),
        ("2007_000032", "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"),
    ),
    "context": (
        "ImageSets/SegmentationContext/{}.txt",
        ("2008_000008", "JPEGImages/2008_000008.jpg", "SegmentationClassContext/2008_000008.png"),
        ("2008_000003", "JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png"),
        ("2008_000002", "JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png"),
    ),
    "coco_stuff": (
        None,
        ("000000000139", "images/val2017/000000000139.jpg", "annotations/val2017/000000000139_labelTrainIds.png"),
        ("000000000285", "images/val2017/000000000285.jpg", "annotations/val2017/000000000285_labelTrainIds.png"),
        ("000000000009", "images/train2017/000000000009.jpg", "annotations/train2017/000000000009_labelTrainIds.png"),
    ),
    "cityscapes": (
        None,
        ("lindau/lindau_1", "leftImg8bit/val/lindau/lindau_1_leftImg8bit.png", "gtFine/val/lindau/lindau_1_gtFine_labelTrainIds.png"),
        ("munster/munster_0", "leftImg8bit/val/munster/munster_0_leftImg8bit.png", "gtFine/val/munster/munster_0_gtFine_labelTrainIds.png"),
        ("aachen/aachen_0", "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png", "gtFine/train/aachen/aachen_0_gtFine_labelTrainIds.png"),
    ),
    "ade20k": (
        None,
        ("ADE_val_00000001", "images/validation/ADE_val_00000001.jpg", "annotations/validation/ADE_val_00000001.png"),
        ("ADE_val_00000002", "images/validation/ADE_val_00000002.jpg", "annotations/validation/ADE_val_00000002.png"),
        ("ADE_train_00000001", "images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"),
    ),
}
FILES |= {"voc20": FILES["voc"], "context59": FILES["context"], "coco_object": FILES["coco_stuff"]}
COUNTS = {"voc": 21, "voc20": 20, "context": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
# What lies in the first picture's file and what it means. The last class stands in it, as do 0 and 255.
STORED = {
    "voc": ([[0, 1, 20], [15, 255, 0]], [[0, 1, 20], [15, 255, 0]]),
    "voc20": ([[0, 1, 20], [15, 255, 0]], [[255, 0, 19], [14, 255, 255]]),
    "context": ([[0, 1, 59], [9, 255, 0]], [[0, 1, 59], [9, 255, 0]]),
    "context59": ([[0, 1, 59], [9, 255, 0]], [[255, 0, 58], [8, 255, 255]]),
    "coco_object": ([[0, 1, 170], [79, 255, 80]], [[1, 2, 0], [80, 0, 0]]),
    "coco_stuff": ([[0, 1, 170], [79, 255, 80]], [[0, 1, 170], [79, 255, 80]]),
    "cityscapes": ([[0, 1, 18], [13, 255, 0]], [[0, 1, 18], [13, 255, 0]]),
    "ade20k": ([[0, 1, 150], [13, 255, 0]], [[255, 0, 149], [12, 255, 255]]),
}
ONE = {"voc20": 0, "context59": 0, "ade20k": 0, "coco_object": 2}  # what a 1 in a file means where it is not 1
ALL = list(LAYOUTS)


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(array, np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())  # colours that say nothing
    image.save(path)


def write(folder, name):
    """A benchmark's folder: the first picture as in STORED, the others all label 1."""
    listing, *pictures = FILES[name]
    for number, (_, image, labels) in enumerate(pictures):
        save(folder / image, np.full((2, 3, 3), 40 * number))
        save(folder / labels, STORED[name][0] if number == 0 else np.ones((2, 3)), palette=name.startswith("voc"))
    if listing:
        (folder / listing.format("val")).parent.mkdir(parents=True)
        (folder / listing.format("val")).write_text(f"{pictures[0][0]}\n{pictures[1][0]}\n")
        (folder / listing.format("train")).write_text(f"{pictures[2][0]}\n")


def settings(name, folder, **others):
    return schema.Benchmark(layout=name, folder=str(folder), **others)


@pytest.fixture(params=ALL)
def there(request, tmp_path):
    """(name, settings, folder) of each benchmark, its files written."""
    write(tmp_path / "data", request.param)
    return request.param, settings(request.param, tmp_path / "data"), tmp_path / "data"


def test_params_know_the_layouts():
    assert typing.get_args(schema.Layout) == tuple(LAYOUTS) == tuple(COUNTS)


KNOWN = {  # some classes of each by index
    "voc": {0: "background", 1: "aeroplane", 11: "diningtable", 20: "tvmonitor"},
    "voc20": {0: "aeroplane", 10: "diningtable", 19: "tvmonitor"},
    "context": {0: "background", 1: "aeroplane", 23: "dog", 59: "wood"},
    "context59": {0: "aeroplane", 22: "dog", 58: "wood"},
    "coco_object": {0: "background", 1: "person", 12: "stop sign", 25: "backpack", 80: "toothbrush"},
    "coco_stuff": {0: "person", 79: "toothbrush", 80: "banner", 143: "sea", 170: "wood"},
    "cityscapes": {0: "road", 10: "sky", 13: "car", 18: "bicycle"},
    "ade20k": {0: "wall", 12: "person", 20: "car", 149: "flag"},
}


def test_coco_object_is_the_eighty_things_of_coco_stuff_and_a_background():
    stuff, things = ((CLASSES / f"coco_{kind}.txt").read_text().splitlines() for kind in ("stuff", "object"))
    assert things == ["background", *stuff[:80]]
    decoded = LAYOUTS["coco_object"].decoded(np.arange(256, dtype=np.uint8)[None])  # all that a file may hold
    # ids from 171 on, which only files that were not converted hold, stay ids that no class has
    assert decoded.dtype == np.uint8 and decoded.tolist() == [[*range(1, 81), *[0] * 91, *range(171, 255), 0]]


def test_pictures_labels_and_classes_are_those_of_the_layout(there):
    name, spec, folder = there
    benchmark = open_benchmark(name, spec)
    assert len(benchmark.classes) == COUNTS[name] and {index: benchmark.classes[index] for index in KNOWN[name]} == KNOWN[name]
    assert benchmark.background == (name in ("voc", "context", "coco_object")) == (len(benchmark.named) < COUNTS[name])
    samples = list(benchmark)
    assert len(benchmark) == 2 and [key for key, _, _ in samples] == [key for key, _, _ in FILES[name][1:3]]
    for number, (_, image, labels) in enumerate(samples):
        assert image.mode == "RGB" and image.size == (3, 2) and abs(int(np.asarray(image)[0, 0, 0]) - 40 * number) < 5
        assert labels.dtype == np.uint8 and labels.shape == (2, 3)
    assert samples[0][2].tolist() == STORED[name][1]
    assert samples[1][2].tolist() == [[ONE.get(name, 1)] * 3] * 2
    other = open_calibration(benchmark, spec)  # the training split
    assert [key for key, _, _ in other] == [FILES[name][3][0]] and other.classes == benchmark.classes
    assert other.source != benchmark.source and all(str(path).startswith(str(folder)) for path in other.files)


def test_no_calibration_picture_is_evaluated(tmp_path):
    write(tmp_path, "voc")
    key = FILES["voc"][2][0]
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(f"2007_000032\n{key}\n")
    spec = settings("voc", tmp_path)
    with pytest.raises(ValueError, match=f"benchmark voc: .*{key}.jpg is evaluated"):
        open_calibration(open_benchmark("voc", spec), spec)


def test_benchmarks_over_the_same_pictures_agree_on_their_source(tmp_path):
    sources = {}
    for name in ALL:
        folder = tmp_path / {"voc20": "voc", "context59": "context", "coco_stuff": "coco_object"}.get(name, name)
        if not folder.exists():
            write(folder, name)
        benchmark = open_benchmark(name, settings(name, folder))
        sources.setdefault(benchmark.source, []).append([name, [key for key, _, _ in benchmark]])
    groups = [[name for name, _ in group] for group in sources.values()]
    assert groups == [["voc", "voc20"], ["context", "context59"], ["coco_object", "coco_stuff"], ["cityscapes"], ["ade20k"]]
    assert all(keys == group[0][1] for group in sources.values() for _, keys in group)


@pytest.mark.parametrize("name, value, named", [("voc", 21, 21), ("voc20", 21, 20), ("cityscapes", 19, 19), ("ade20k", 151, 150)])
def test_a_label_beyond_the_classes_is_named(name, value, named, tmp_path):
    write(tmp_path, name)
    save(tmp_path / FILES[name][2][2], np.full((2, 3), value))
    with pytest.raises(ValueError, match=f"benchmark {name}: label map .* holds {named}: must be 0 to {COUNTS[name] - 1} or 255"):
        list(open_benchmark(name, settings(name, tmp_path)))


@pytest.mark.parametrize("name", ALL)
def test_a_missing_folder_is_one_line_that_states_what_is_needed(name, tmp_path):
    with pytest.raises(NotHere) as error:
        open_benchmark(name, settings(name, tmp_path / "no"))
    text = str(error.value)
    assert text.startswith(f"benchmark {name}: {tmp_path}/no does not exist: needed are ") and "\n" not in text
    assert "download " in text and "http" in text and all(part.split("/")[0] in text for part in FILES[name][1][1:])
    converter = {"voc": "", "context": "pascal_context.py", "coco": "coco_stuff164k.py", "cityscapes": "cityscapes.py", "ade20k": ""}
    assert next(script for start, script in converter.items() if name.startswith(start)) in text


@pytest.mark.parametrize("name", ["voc", "coco_stuff"])
def test_an_incomplete_benchmark_is_an_error_even_if_it_is_optional(name, tmp_path):
    def check(message):
        with pytest.raises(FileNotFoundError, match=message) as error:
            open_benchmarks({name: settings(name, tmp_path, optional=True)})
        assert not isinstance(error.value, NotHere) and str(error.value).startswith(f"benchmark {name}: ")
        assert LAYOUTS[name].source in str(error.value)

    write(tmp_path, name)
    listing, first, second, _ = FILES[name]
    for file in (second[2], first[1]) if listing else (second[2],):
        (tmp_path / file).rename(tmp_path / "away")
        check(f"{file} does not exist")
        (tmp_path / "away").rename(tmp_path / file)
    if listing:
        (tmp_path / listing.format("val")).write_text("\n")
        check("no pictures in .*val.txt")
        (tmp_path / listing.format("val")).unlink()
        check("val.txt does not exist")
    else:
        (tmp_path / first[1]).unlink(), (tmp_path / second[1]).unlink()
        check("no pictures in ")


def test_an_optional_benchmark_that_is_missing_is_skipped_with_a_line(tmp_path, capsys):
    write(tmp_path / "voc", "voc")
    no_maps = tmp_path / "coco"
    save(no_maps / FILES["coco_object"][1][1], np.zeros((2, 3, 3)))
    (no_maps / "annotations").mkdir()  # with nothing of the split in it
    wanted = {
        "ade20k": settings("ade20k", tmp_path / "ade", optional=True),
        "voc": settings("voc", tmp_path / "voc"),
        "coco_object": settings("coco_object", no_maps, optional=True),
        "plain": schema.Benchmark(folder=str(tmp_path / "plain"), optional=True),
        "tars": schema.Benchmark(shards=str(tmp_path / "*.tar"), label="a.png", classes="none.txt", optional=True),
        "voc20": settings("voc20", tmp_path / "voc", optional=True),
    }
    assert [benchmark.name for benchmark in open_benchmarks(wanted)] == ["voc", "voc20"]
    printed = capsys.readouterr().out.splitlines()
    assert [text.split(": ")[1] for text in printed] == [f"benchmark {name}" for name in ("ade20k", "coco_object", "plain", "tars")]


def test_a_required_benchmark_that_is_missing_is_an_error_and_so_is_none_at_all(tmp_path):
    write(tmp_path / "voc", "voc")
    with pytest.raises(NotHere, match="benchmark ade20k: "):
        open_benchmarks({"voc": settings("voc", tmp_path / "voc"), "ade20k": settings("ade20k", tmp_path / "ade")})
    with pytest.raises(NotHere, match="none of the benchmarks is there: voc, ade20k"):
        open_benchmarks({name: settings(name, tmp_path / "no", optional=True) for name in ("voc", "ade20k")})
