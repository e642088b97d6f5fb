"""Benchmarks in folders and in shards: their pictures, and what is wrong with them in one line."""

import re

import numpy as np
import pytest
import webdataset as wds
from handmade import png
from PIL import Image

from ovseg.benchmarks.datasets import FolderBenchmark, NotHere, ShardBenchmark, open_benchmark
from ovseg.schema import Benchmark


def pictures():
    """(key, (H, W, 3) image, (H, W) label map of values 0..2 and 255) of three pictures of different sizes."""
    for index in range(3):
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
    samples = list(pictures())
    for number, part in enumerate((samples[:2], samples[2:])):
        with wds.TarWriter(str(tmp_path / f"b-{number}.tar"), encoder=False) as tar:
            for key, image, labels in part:
                tar.write({"__key__": key, "png": png(image), "seg.png": png(labels), "txt": b"unused"})
    (tmp_path / "names.txt").write_text("background\ncat\nsofa\n", encoding="utf-8-sig")  # a byte order mark is no part of a class
    return str(tmp_path / "b-*.tar"), tmp_path / "names.txt"


def check_round_trip(benchmark):
    assert len(benchmark) == 3
    for _ in range(2):  # it can be read again
        for (key, image, labels), (expected_key, pixels, truth) in zip(benchmark, pictures(), strict=True):
            assert key == expected_key and image.mode == "RGB"
            assert np.array_equal(np.asarray(image), pixels) and np.array_equal(labels, truth)


def test_a_folder_is_read_in_the_order_of_names(folder):
    (folder / "images" / "notes.md").write_text("taken in 2019")  # not an image
    benchmark = open_benchmark("mine", Benchmark(folder=str(folder)))
    check_round_trip(benchmark)
    assert benchmark.classes == benchmark.named == ["cat", "sofa", "tall tree"] and not benchmark.background


def test_shards_are_read_in_order_and_a_first_class_named_background_has_no_text(in_shards):
    spec, classes = in_shards
    benchmark = open_benchmark("mine", Benchmark(shards=spec, label="seg.png", classes=str(classes)))
    check_round_trip(benchmark)
    assert benchmark.background and benchmark.classes == ["background", "cat", "sofa"] and benchmark.named == ["cat", "sofa"]


def test_label_maps_are_indices_of_a_palette_and_pictures_are_turned_upright(folder):
    (key, image, labels), *_ = pictures()
    indexed = Image.fromarray(labels).convert("L")
    indexed.putpalette(np.arange(768, dtype=np.uint8).tobytes())  # mode P: VOC's label maps have a palette
    indexed.save(folder / "labels" / f"{key}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned by a quarter to the right
    Image.fromarray(np.rot90(image)).save(folder / "images" / f"{key}.png", exif=exif)
    check_round_trip(FolderBenchmark("mine", folder))


def test_samples_are_every_nth_picture_and_report_unreadable_ones(folder, in_shards, tmp_path):
    spec, classes = in_shards
    for benchmark in (FolderBenchmark("mine", folder), ShardBenchmark("mine", spec, "seg.png", classes)):
        assert [key for key, _, _ in benchmark.samples(2)] == ["p0", "p2"]
    (folder / "labels" / "p0.png").write_bytes(b"no picture")
    with wds.TarWriter(str(tmp_path / "b-0.tar"), encoder=False) as tar:
        tar.write({"__key__": "p0", "png": b"no picture", "seg.png": png(np.zeros((2, 2), np.uint8))})
    whole = (tmp_path / "b-1.tar").read_bytes()
    (tmp_path / "b-1.tar").write_bytes(whole + whole[: len(whole) // 3])  # more follows the end
    broken = {"labels/p0.png: ": FolderBenchmark("mine", folder), "sample p0: ": ShardBenchmark("mine", spec, "seg.png", classes)}
    for bad, benchmark in broken.items():
        failed = []
        assert [key for key, _, _ in benchmark.samples(1, failed.append)][-1] == "p2"
        assert str(failed[0]).startswith("benchmark mine: ") and bad in str(failed[0]) and isinstance(failed[0], ValueError)
        with pytest.raises(ValueError, match=f"benchmark mine: .*{bad}"):
            list(benchmark)


@pytest.mark.parametrize(
    "content, message",
    [
        ("café\nsofa\n".encode("latin-1"), ".*can't decode byte 0xe9"),
        (b"Background\ncat\nsofa\n", "'background' must be the first class, in lower case"),
        (b"cat\nbackground\nsofa\n", "'background' must be the first class"),
        (b"cat\nsofa\n Cat\n", "must hold 2 to 255 distinct names"),
        (b"cat\n", "must hold 2 to 255 distinct names"),
        ("\n".join(f"c{i}" for i in range(256)).encode(), "must hold 2 to 255 distinct names"),
    ],
)
def test_bad_class_names_are_refused(folder, content, message):
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"benchmark mine: .*classes.txt:? {message}"):
        FolderBenchmark("mine", folder)


def test_missing_files_and_pictures_of_one_name_are_refused(folder):
    for part, kind in (("images", FileNotFoundError), ("labels", NotHere), ("classes.txt", FileNotFoundError)):
        (folder / part).rename(folder / "away")
        with pytest.raises(kind, match=f"benchmark mine: .*{part} does not exist: needed are images/, labels/ and classes.txt") as error:
            FolderBenchmark("mine", folder)
        assert type(error.value) is kind
        (folder / "away").rename(folder / part)
    (folder / "images" / "p1.jpg").write_bytes((folder / "images" / "p1.png").read_bytes())
    with pytest.raises(ValueError, match="benchmark mine: .*images holds several images named p1"):
        FolderBenchmark("mine", folder)
    (folder / "images" / "p1.jpg").unlink()
    (folder / "labels" / "p1.png").unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: .*labels/p1.png does not exist"):
        FolderBenchmark("mine", folder)
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: .*images holds no images"):
        FolderBenchmark("mine", folder)


def bad_label_maps():
    (_, _, labels), *_ = pictures()
    beyond = labels.copy()
    beyond[0, 0] = 3
    return {
        "p0.*: a label map of mode RGB": np.stack([labels] * 3, -1),
        "p0.*: a label map of mode 1": labels > 0,
        "p0: image is 12x8, label map 8x12": labels.T,
        "label map p0 holds 3: must be 0 to 2 or 255": beyond,
        "label map p0 holds 256: must be 0 to 2 or 255": np.where(labels == 255, 256, labels.astype(np.uint16)),
    }


@pytest.mark.parametrize("message, labels", bad_label_maps().items(), ids=["colours", "1 bit", "size", "range", "16 bit"])
def test_a_bad_label_map_is_named(folder, tmp_path, message, labels):
    (folder / "labels" / "p0.png").write_bytes(png(labels))
    with wds.TarWriter(str(tmp_path / "b.tar"), encoder=False) as tar:
        tar.write({"__key__": "p0", "png": (folder / "images" / "p0.png").read_bytes(), "seg.png": png(labels)})
    shards = ShardBenchmark("mine", str(tmp_path / "b.tar"), "seg.png", folder / "classes.txt")
    for benchmark in (FolderBenchmark("mine", folder), shards):
        with pytest.raises(ValueError, match=f"benchmark mine: .*{message}"):
            list(benchmark)


def test_incomplete_shards_are_errors(in_shards, tmp_path):
    spec, classes = in_shards
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar: sample p0 has no mask.png"):
        list(ShardBenchmark("mine", spec, "mask.png", classes))
    with pytest.raises(FileNotFoundError, match=f"benchmark mine: no shards at {re.escape(str(tmp_path))}/no-such"):
        ShardBenchmark("mine", str(tmp_path / "no-such-*.tar"), "seg.png", classes)
    whole = (tmp_path / "b-0.tar").read_bytes()
    (tmp_path / "b-0.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar: truncated tar"):
        list(ShardBenchmark("mine", spec, "seg.png", classes))
