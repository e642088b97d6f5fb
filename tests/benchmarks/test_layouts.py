"""The paper's benchmarks on tiny folders in MMSegmentation's layouts."""

import numpy as np
import pytest
from handmade import COUNTS, PLACES, REDUCED, WITH_BACKGROUND, files
from tiny import save

from ovseg import schema
from ovseg.benchmarks.calibration import open_calibration
from ovseg.benchmarks.datasets import NotHere, open_benchmark, open_benchmarks
from ovseg.benchmarks.layouts import CLASSES, LAYOUTS

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
LISTED, SORTED = ("061", "033", "032"), ("lindau/1", "munster/0", "aachen/2")  # two evaluated pictures in order, one for calibration
KEYS = {name: LISTED if PLACES[name][0] else SORTED for name in COUNTS}
KNOWN = {  # some classes of each by index
    "voc": {0: "background", 1: "aeroplane", 11: "diningtable", 20: "tvmonitor"},
    "context": {0: "background", 1: "aeroplane", 23: "dog", 59: "wood"},
    "coco_object": {0: "background", 1: "person", 12: "stop sign", 25: "backpack", 80: "toothbrush"},
    "coco_stuff": {0: "person", 79: "toothbrush", 80: "banner", 143: "sea", 170: "wood"},
    "cityscapes": {0: "road", 10: "sky", 13: "car", 18: "bicycle"},
    "ade20k": {0: "wall", 12: "person", 20: "car", 149: "flag"},
}


def write(folder, name):
    """A benchmark's folder: the first picture as in STORED, the others all label 1."""
    for number, (image, labels) in enumerate(files(name, KEYS[name][:2]) + files(name, KEYS[name][2:], 1)):
        save(folder / image, np.full((2, 3, 3), 40 * number))
        save(folder / labels, STORED[name][0] if number == 0 else np.ones((2, 3)))
    if listing := PLACES[name][0]:
        save(folder / listing.format("val"), "\n".join(KEYS[name][:2]) + "\n")
        save(folder / listing.format("train"), f"{KEYS[name][2]}\n")


def settings(name, folder, **others):
    return schema.Benchmark(layout=name, folder=str(folder), **others)


def test_params_know_the_layouts_and_coco_object_is_the_eighty_things_of_coco_stuff_and_a_background():
    assert schema.LAYOUTS == tuple(LAYOUTS) == tuple(COUNTS)
    stuff, things = ((CLASSES / f"coco_{kind}.txt").read_text().splitlines() for kind in ("stuff", "object"))
    assert things == ["background", *stuff[:80]]
    decoded = LAYOUTS["coco_object"].decoded(np.arange(256, dtype=np.uint8)[None])  # all that a file may hold
    # ids from 171 on, which only files that were not converted hold, stay ids that no class has
    assert decoded.dtype == np.uint8 and decoded.tolist() == [[*range(1, 81), *[0] * 91, *range(171, 255), 0]]


@pytest.mark.parametrize("name", COUNTS)
def test_pictures_labels_and_classes_are_those_of_the_layout(name, tmp_path):
    write(tmp_path, name)
    benchmark = open_benchmark(name, spec := settings(name, tmp_path))
    known = KNOWN.get(name) or {index - 1: label for index, label in KNOWN[name.rstrip("0259")].items() if index}  # without background
    assert len(benchmark.classes) == COUNTS[name] and {index: benchmark.classes[index] for index in known} == known
    assert benchmark.background == (name in WITH_BACKGROUND) == (len(benchmark.named) < COUNTS[name])
    pictures = PLACES[name][0].format("val") if PLACES[name][0] else files(name, "*")[0][0]
    assert benchmark.source == str(tmp_path / pictures)  # which benchmarks over the same pictures have in common
    samples = list(benchmark)
    assert len(benchmark) == 2 and tuple(key for key, _, _ in samples) == KEYS[name][:2]
    assert all(abs(int(np.asarray(image)[0, 0, 0]) - 40 * number) < 5 for number, (_, image, _) in enumerate(samples))
    assert samples[0][2].tolist() == STORED[name][1] and samples[0][2].dtype == np.uint8
    assert np.unique(samples[1][2]) == [0 if name in REDUCED else 2 if name == "coco_object" else 1]
    if listing := PLACES[name][0]:
        save(tmp_path / listing.format("val"), "\ufeff" + "\n".join(KEYS[name][:2]))  # with a byte order mark
    else:
        save((tmp_path / files(name, KEYS[name])[0][0]).with_name("._a.jpg"), b"")  # of macOS
    again = open_benchmark(name, spec)
    assert again.keys == list(KEYS[name][:2]) and [note[:20] for note in again.notes] == ["1 files are left out"] * (not listing)
    other = open_calibration(benchmark, spec)  # the training split
    assert [key for key, _, _ in other] == [KEYS[name][2]] and other.classes == benchmark.classes
    assert other.source != benchmark.source and all(str(path).startswith(str(tmp_path)) for path in other.files)
    beyond = 171 if name == "coco_object" else COUNTS[name]
    save(tmp_path / files(name, KEYS[name])[1][1], np.full((2, 3), beyond + (name in REDUCED)))
    with pytest.raises(ValueError, match=f"benchmark {name}: label map .* holds {beyond}: must be 0 to {COUNTS[name] - 1} or 255"):
        list(benchmark)


@pytest.mark.parametrize("name", COUNTS)
def test_a_missing_file_is_named_and_only_a_missing_folder_counts_as_not_here(name, tmp_path):
    def check(message, kind=FileNotFoundError):
        with pytest.raises(FileNotFoundError, match=message) as error:
            open_benchmark(name, settings(name, tmp_path))
        assert type(error.value) is kind and str(error.value).startswith(f"benchmark {name}: ") and "\n" not in str(error.value)
        assert all(path.split("/")[0] in str(error.value) for path in first)  # what is needed

    listing, (first, second) = PLACES[name][0], files(name, KEYS[name][:2])
    check(f"{tmp_path}/{first[1].split('/')[0]}.* does not exist: needed are ", NotHere)
    write(tmp_path, name)
    for file in (second[1], first[0]) if listing else (second[1],):
        (tmp_path / file).rename(tmp_path / "away")
        check(f"{file} does not exist")
        (tmp_path / "away").rename(tmp_path / file)
    if listing:
        (tmp_path / listing.format("val")).write_text("\n")
        check("no pictures in .*val.txt")
        (tmp_path / listing.format("val")).unlink()
        check("val.txt does not exist")
    else:
        (tmp_path / first[0]).unlink()
        (tmp_path / second[0]).unlink()
        check("no pictures in ")


def test_an_optional_benchmark_that_is_missing_is_skipped_with_a_line_and_a_required_one_is_an_error(tmp_path, capsys):
    write(tmp_path / "voc", "voc")
    save(tmp_path / "coco/images/val2017/1.jpg", np.zeros((2, 3, 3)))
    (tmp_path / "coco/annotations").mkdir()  # with nothing of the split in it
    wanted = {
        "ade20k": settings("ade20k", tmp_path / "ade", optional=True),
        "voc": settings("voc", tmp_path / "voc"),
        "coco_object": settings("coco_object", tmp_path / "coco", optional=True),
        "plain": schema.Benchmark(folder=str(tmp_path / "plain"), optional=True),
        "tars": schema.Benchmark(shards=str(tmp_path / "*.tar"), label="a.png", classes="none.txt", optional=True),
        "voc20": settings("voc20", tmp_path / "voc", optional=True),
    }
    assert [benchmark.name for benchmark in open_benchmarks(wanted)] == ["voc", "voc20"]
    printed = capsys.readouterr().out.splitlines()
    assert [text.split(": ")[1] for text in printed] == [f"benchmark {name}" for name in ("ade20k", "coco_object", "plain", "tars")]
    with pytest.raises(NotHere, match="benchmark ade20k: "):
        open_benchmarks({"voc": wanted["voc"], "ade20k": settings("ade20k", tmp_path / "ade")})
    with pytest.raises(NotHere, match="none of the benchmarks is there: ade20k, plain"):
        open_benchmarks({name: wanted[name] for name in ("ade20k", "plain")})
