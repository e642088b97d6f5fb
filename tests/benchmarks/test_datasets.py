"""Benchmarks in folders and in shards: their pictures, what is wrong with them in one line, their fingerprints."""

import numpy as np
import pytest
import webdataset as wds
from handmade import png
from PIL import Image

from ovseg.benchmarks.datasets import FolderBenchmark, ShardBenchmark, check_thresholds, open_benchmark
from ovseg.schema import Benchmark


def pictures(count=3):
    """(key, (H, W, 3) image, (H, W) label map of values 0..2 and 255) of `count` pictures of different sizes."""
    for index in range(count):
        rng = np.random.default_rng(index)
        height, width = 8 + index, 12 - index
        labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
        yield f"p{index}", rng.integers(0, 256, (height, width, 3), dtype=np.uint8), labels


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for key, image, labels in pictures():
        (tmp_path / "images" / f"{key}.png").write_bytes(png(image))
        (tmp_path / "labels" / f"{key}.png").write_bytes(png(labels))
    (tmp_path / "classes.txt").write_text("cat\nsofa\n\n tall tree \n")
    return tmp_path


@pytest.fixture
def in_shards(tmp_path):
    """A spec of two shards with the pictures, and a file of class names."""
    found = list(pictures())
    for number, part in enumerate((found[:2], found[2:])):
        with wds.TarWriter(str(tmp_path / f"b-{number}.tar"), encoder=False) as tar:
            for key, image, labels in part:
                tar.write({"__key__": key, "png": png(image), "seg.png": png(labels), "txt": b"unused"})
    (tmp_path / "names.txt").write_text("background\ncat\nsofa\n")
    return str(tmp_path / "b-*.tar"), tmp_path / "names.txt"


def check_round_trip(benchmark):
    assert len(benchmark) == 3
    for _ in range(2):  # it can be read again
        for (key, image, labels), (expected_key, pixels, truth) in zip(benchmark, pictures(), strict=True):
            assert key == expected_key and image.mode == "RGB"
            assert np.array_equal(np.asarray(image), pixels) and np.array_equal(labels, truth)


def test_a_folder_is_read_in_the_order_of_names(folder):
    (folder / "images" / "notes.md").write_text("taken in 2019")  # what is no image is left out
    benchmark = open_benchmark("mine", Benchmark(folder=str(folder)))
    check_round_trip(benchmark)
    assert benchmark.classes == benchmark.named == ["cat", "sofa", "tall tree"] and not benchmark.background


def test_shards_are_read_in_order_and_a_first_class_named_background_is_no_text(in_shards):
    spec, classes = in_shards
    benchmark = open_benchmark("mine", Benchmark(shards=spec, label="seg.png", classes=str(classes)))
    check_round_trip(benchmark)
    assert benchmark.background and benchmark.classes == ["background", "cat", "sofa"] and benchmark.named == ["cat", "sofa"]


def test_a_palette_label_map_is_its_indices(folder):
    (key, _, labels), *_ = pictures()
    indexed = Image.fromarray(labels).convert("L")
    indexed.putpalette(np.arange(768, dtype=np.uint8).tobytes())  # mode P: VOC's label maps have a palette
    indexed.save(folder / "labels" / f"{key}.png")
    check_round_trip(FolderBenchmark("mine", folder))


def test_a_picture_stored_rotated_is_read_upright(folder):
    (key, image, _), *_ = pictures()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned by a quarter to the right
    Image.fromarray(np.rot90(image)).save(folder / "images" / f"{key}.png", exif=exif)
    check_round_trip(FolderBenchmark("mine", folder))


def test_a_byte_order_mark_is_no_part_of_the_first_class(folder):
    (folder / "classes.txt").write_text("background\ncat\nsofa\n", encoding="utf-8-sig")
    benchmark = FolderBenchmark("mine", folder)
    assert benchmark.background and benchmark.classes == ["background", "cat", "sofa"]


# ---- what is wrong


@pytest.mark.parametrize(
    "content, message",
    [
        ("café\nsofa\n".encode("latin-1"), "is not UTF-8"),
        (b"Background\ncat\nsofa\n", "holds 'Background': the background is the first class, 'background'"),
        (b"cat\nbackground\nsofa\n", "holds 'background': the background is the first class, 'background'"),
        (b"cat\nsofa\n Cat\n", "must hold 2 to 255 distinct names"),
    ],
)
def test_bad_class_names_are_refused(folder, content, message):
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"benchmark mine: .*classes.txt {message}"):
        FolderBenchmark("mine", folder)


def test_two_images_of_one_name_are_refused(folder):
    (folder / "images" / "p1.jpg").write_bytes((folder / "images" / "p1.png").read_bytes())
    with pytest.raises(ValueError, match="benchmark mine: several images are named p1, for one label map labels/p1.png"):
        FolderBenchmark("mine", folder)


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_truncated_file_is_named(folder, part):
    path = folder / part / "p1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"benchmark mine: .*{part}/p1.png: "):
        list(FolderBenchmark("mine", folder))


def test_a_label_map_of_one_bit_is_refused(folder):
    Image.fromarray(np.zeros((8, 12), bool)).save(folder / "labels" / "p0.png")
    with pytest.raises(ValueError, match="benchmark mine: .*labels/p0.png: a label map of mode 1"):
        list(FolderBenchmark("mine", folder))


def test_a_threshold_of_a_benchmark_without_background_is_refused(folder):
    benchmarks = [FolderBenchmark("mine", folder)]
    check_thresholds(benchmarks, {"other": 0.5})
    with pytest.raises(ValueError, match="evaluate.thresholds.mine: mine has no background; its first class is cat"):
        check_thresholds(benchmarks, {"mine": 0.5})


@pytest.mark.parametrize("part", ["images", "labels", "classes.txt"])
def test_a_missing_part_of_the_folder_is_named(folder, part):
    (folder / part).rename(folder / "away")
    with pytest.raises(FileNotFoundError, match=f"benchmark mine: .*{part} does not exist; expected images/, labels/ and classes.txt"):
        FolderBenchmark("mine", folder)


def test_a_missing_label_map_and_a_folder_without_images_are_errors(folder):
    (folder / "labels" / "p1.png").unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: no label map labels/p1.png"):
        FolderBenchmark("mine", folder)
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: no images in images/"):
        FolderBenchmark("mine", folder)


@pytest.mark.parametrize("names", ["", "cat\n", "cat\nsofa\ncat\n", "\n".join(f"c{i}" for i in range(256))])
def test_classes_must_be_distinct_and_fit_a_byte(folder, names):
    (folder / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match="benchmark mine: .*classes.txt must hold 2 to 255 distinct names"):
        FolderBenchmark("mine", folder)


def bad_label_maps():
    (_, _, labels), *_ = pictures()
    beyond, rgb = labels.copy(), np.stack([labels] * 3, -1)
    beyond[0, 0] = 3
    return {
        r".*p0.*seg.png: a label map of mode RGB; allowed are greys and palettes|.*labels/p0.png: a label map of mode RGB": rgb,
        "p0: image is 12x8, label map 8x12": labels.T,
        r"label map p0 holds 3; allowed are 0\.\.2 and 255": beyond,
        r"label map p0 holds 256; allowed are 0\.\.2 and 255": np.where(labels == 255, 256, labels.astype(np.uint16)),
    }


@pytest.mark.parametrize("message, labels", bad_label_maps().items(), ids=["colours", "size", "range", "16 bit"])
def test_a_bad_label_map_is_named(folder, tmp_path, message, labels):
    (folder / "labels" / "p0.png").write_bytes(png(labels))
    with wds.TarWriter(str(tmp_path / "b.tar"), encoder=False) as tar:
        tar.write({"__key__": "p0", "png": (folder / "images" / "p0.png").read_bytes(), "seg.png": png(labels)})
    shards = ShardBenchmark("mine", str(tmp_path / "b.tar"), "seg.png", folder / "classes.txt")
    for benchmark in (FolderBenchmark("mine", folder), shards):
        with pytest.raises(ValueError, match=f"benchmark mine: {message}"):
            list(benchmark)


def test_a_sample_without_its_label_map_and_one_with_a_broken_image_are_named(in_shards, tmp_path):
    spec, classes = in_shards
    with pytest.raises(ValueError, match="benchmark mine: sample p0 of .*b-0.tar has no mask.png"):
        list(ShardBenchmark("mine", spec, "mask.png", classes))
    with wds.TarWriter(str(tmp_path / "broken.tar"), encoder=False) as tar:
        tar.write({"__key__": "k7", "png": b"no picture", "seg.png": png(np.zeros((2, 2), np.uint8))})
    with pytest.raises(ValueError, match="benchmark mine: sample k7 of .*broken.tar: broken image"):
        list(ShardBenchmark("mine", str(tmp_path / "broken.tar"), "seg.png", classes))


def test_missing_and_truncated_shards_are_errors(in_shards, tmp_path):
    spec, classes = in_shards
    with pytest.raises(FileNotFoundError, match="benchmark mine: no shards at .*no-such-.*tar"):
        ShardBenchmark("mine", str(tmp_path / "no-such-*.tar"), "seg.png", classes)
    whole = (tmp_path / "b-0.tar").read_bytes()
    (tmp_path / "b-0.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar: truncated tar"):
        list(ShardBenchmark("mine", spec, "seg.png", classes))


# ---- fingerprints


def test_the_fingerprint_changes_with_pictures_label_maps_and_classes_and_with_nothing_else(folder):
    def now():
        return FolderBenchmark("mine", folder).fingerprint

    before = now()
    for path in folder.rglob("*.*"):
        path.touch()
    assert now() == before
    changed = [next((folder / "images").iterdir()), next((folder / "labels").glob("*.png")), folder / "classes.txt"]
    for path in changed:
        data = path.read_bytes()
        path.write_bytes(data + b"\nz")
        assert now() != before
        path.write_bytes(data)
    assert now() == before
    changed[0].unlink()
    assert now() != before


def test_the_fingerprint_of_shards_changes_with_them(in_shards, tmp_path):
    spec, names = in_shards
    before = ShardBenchmark("mine", spec, "seg.png", names).fingerprint
    data = (tmp_path / "b-1.tar").read_bytes()
    (tmp_path / "b-1.tar").write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])  # of the same size
    assert ShardBenchmark("mine", spec, "seg.png", names).fingerprint != before
