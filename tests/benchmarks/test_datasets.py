"""Benchmarks in folders and in shards: their pictures, and what is wrong with them in one line."""

import re

import numpy as np
import pytest
from PIL import Image
from small import write_tar
from tiny import encoded, save, write_benchmark

from ovseg.benchmarks.datasets import FolderBenchmark, NotHere, open_benchmark
from ovseg.benchmarks.miou import MeanIoU
from ovseg.schema import Benchmark

RNG, SIZES = np.random.default_rng(0), {"p0": (8, 12), "p1": (9, 11), "p2": (10, 10)}
VALUES = np.array([0, 1, 2, 255], np.uint8)  # of label maps
PICTURES = {key: (RNG.integers(0, 256, (*size, 3), dtype=np.uint8), RNG.choice(VALUES, size)) for key, size in SIZES.items()}


@pytest.fixture
def opened(tmp_path):
    """Writes pictures, arrays or bytes, as a folder and as a shard for each: opened(pictures) gives the two benchmarks."""

    def of(pictures, label="seg.png"):
        save(tmp_path / "classes.txt", "cat\nsofa\n\n tall tree \n")
        for key, contents in pictures.items():
            image, labels = (content if isinstance(content, bytes) else encoded(content) for content in contents)
            save(tmp_path / f"images/{key}.png", image)
            save(tmp_path / f"labels/{key}.png", labels)
            write_tar(tmp_path / f"b-{key}.tar", {key: {"png": image, "seg.png": labels, "txt": b"unused"}})
        shards = Benchmark(shards=str(tmp_path / "b-*.tar"), label=label, classes=str(tmp_path / "classes.txt"))
        return [open_benchmark("mine", settings) for settings in (Benchmark(folder=str(tmp_path)), shards)]

    return of


def test_folders_and_shards_are_read_in_the_order_of_names(opened, tmp_path):
    save(tmp_path / "images/notes.md", "taken in 2019")  # not an image
    for benchmark in opened(PICTURES):
        assert len(benchmark) == 3 and benchmark.classes == benchmark.named == ["cat", "sofa", "tall tree"] and not benchmark.background
        for _ in range(2):  # it can be read again
            for (key, image, labels), (expected_key, (pixels, truth)) in zip(benchmark, PICTURES.items(), strict=True):
                assert key == expected_key and image.mode == "RGB"
                assert np.array_equal(np.asarray(image), pixels) and np.array_equal(labels, truth)
        assert [key for key, _, _ in benchmark.samples(2)] == ["p0", "p2"]
    (tmp_path / "classes.txt").write_text("background\ncat\nsofa\n", encoding="utf-8-sig")  # a byte order mark is no part of a class
    benchmark = FolderBenchmark("mine", tmp_path)
    assert benchmark.background and benchmark.classes == ["background", "cat", "sofa"] and benchmark.named == ["cat", "sofa"]


def test_unreadable_pictures_are_reported_and_others_are_read(opened, tmp_path):
    for bad in ((b"no picture", PICTURES["p0"][1]), (PICTURES["p0"][0], b"no picture")):
        for benchmark in opened(PICTURES | {"p0": bad}):
            failed = []
            assert [key for key, _, _ in benchmark.samples(1, failed.append)] == ["p1", "p2"]
            assert len(failed) == 1 and re.match("benchmark mine: .*p0", str(failed[0])) and isinstance(failed[0], ValueError)
            with pytest.raises(ValueError, match="benchmark mine: .*p0"):
                list(benchmark)
    folder, _ = opened(PICTURES)
    (tmp_path / "labels/p0.png").unlink()  # after the benchmark was opened
    with pytest.raises(ValueError, match="benchmark mine: .*labels/p0.png: .*No such file"):
        list(folder)


def test_bad_class_names_are_refused(opened, tmp_path):
    opened(PICTURES)
    (tmp_path / "classes.txt").write_bytes("café\nsofa\n".encode("latin-1"))
    with pytest.raises(ValueError, match="benchmark mine: .*classes.txt: is not UTF-8"):
        FolderBenchmark("mine", tmp_path)


def test_files_of_a_folder_belong_together_by_name_and_others_are_noted(tmp_path, capsys):
    pixels, labels = PICTURES["p0"]
    save(tmp_path / "classes.txt", "cat\nsofa\ntall tree\n")
    for image, label in {  # of other suffixes, with a further dot, with accents as macOS and as Linux write them, in subfolders
        **{"a.JFIF": "a.PNG", "b.c.tif": "b.c.png", "b.bmp": "b.tif", "cafe\u0301.gif": "caf\u00e9.png", "x/a.Jpe": "x/a.png"},
        **{"._a.JPG": "._a.png", ".x/a.jpg": ".x/a.png", "h.heic": "h.png"},
    }.items():
        save(tmp_path / "images" / image, b"" if image.startswith(".") else encoded(pixels, "PNG"))
        save(tmp_path / "labels" / label, encoded(labels, "PNG"))
    save(tmp_path / "labels/b.png.json", "{}")
    benchmark = FolderBenchmark("mine", tmp_path)
    assert [key for key, *_ in benchmark] == ["a", "b", "b.c", "caf\u00e9", "x/a"]
    assert all(np.array_equal(stored, labels) for *_, stored in benchmark)
    names = "images/._a.JPG, images/.x/a.jpg, images/h.heic, labels/._a.png, labels/.x/a.png, and 2 more"
    note = f"note: benchmark mine: 7 files are left out, as they are no pictures or belong to none: {names}\n"
    assert capsys.readouterr().err == note * 2


def test_what_may_be_wrong_with_ids_palettes_and_exif_is_noted(opened, tmp_path, capsys):
    image, ids, exif = np.zeros((8, 12, 3), np.uint8), np.eye(8, 12, dtype=np.uint8), Image.Exif()

    def coloured(palette):
        (labels := Image.fromarray(ids)).putpalette(palette)
        return encoded(labels)

    def turned(orientation):
        exif[0x0112] = orientation
        return encoded(image, "JPEG", exif=exif)

    for first, second, note in (
        ((image, 255 * ids), (image, 255 * ids), "all ids are 0 or 255, which is ignored: if these are masks of one class"),
        ((image, coloured(b"abcdef")), (image, coloured(b"abcxyz")), "an id has another colour in another label map"),
        ((image, coloured(b"abcdef")), (image, coloured(b"abcdef")), None),
        ((turned(3), ids), (image, ids), "EXIF turns pictures upright: are their label maps upright, too?"),
        ((turned(6), ids.T), (turned(1), ids), None),
    ):
        for benchmark in opened({"p0": first, "p1": second}):
            list(benchmark)
            printed = capsys.readouterr().err
            assert printed.startswith(f"note: benchmark mine: {note}") if note else not printed
    for benchmark in opened({"p0": (turned(6), ids)}):
        with pytest.raises(ValueError, match="p0: image is 8x12 after EXIF has turned it .*, label map 12x8"):
            list(benchmark)


def test_with_more_than_255_classes_65535_is_ignored(tmp_path, capsys):
    labels = np.array([[0, 255, 299], [65535, 299, 7]], np.uint16)
    folder = write_benchmark(tmp_path, [labels, [[1, 255]]], [f"c{index}" for index in range(300)])
    (_, _, read), _ = FolderBenchmark("many", folder)
    assert np.array_equal(read, labels)
    assert "label maps of 8 bits hold 255: with more than 255 classes it is a class" in capsys.readouterr().err
    iou = MeanIoU(range(300))
    iou.update(np.array([[0, 255, 299], [5, 8, 7]]), read)
    assert {index: value for index, value in iou.compute().items() if value is not None} == {0: 100, 7: 100, 8: 0, 255: 100, 299: 50}
    save(folder / "labels/0.png", np.where(labels == 299, 300, labels))
    with pytest.raises(ValueError, match="label map 0 holds 300: must be 0 to 299 or 65535"):
        list(FolderBenchmark("many", folder))


def test_missing_files_and_pictures_of_one_name_are_refused(opened, tmp_path):
    def refused(kind, message):
        with pytest.raises(kind, match=f"benchmark mine: .*{message}") as error:
            FolderBenchmark("mine", tmp_path)
        assert type(error.value) is kind

    opened(PICTURES)
    for part, kind in (("images", FileNotFoundError), ("labels", NotHere), ("classes.txt", FileNotFoundError)):
        (tmp_path / part).rename(tmp_path / "away")
        refused(kind, f"{part} does not exist: needed are images/, labels/ and classes.txt")
        (tmp_path / "away").rename(tmp_path / part)
    save(tmp_path / "images/p1.jpg", PICTURES["p1"][0])
    refused(ValueError, "images holds several images named p1")
    (tmp_path / "images/p1.jpg").unlink()
    (tmp_path / "labels/p1.png").unlink()
    save(tmp_path / "labels/p1_mask.png", PICTURES["p1"][1])
    refused(FileNotFoundError, "labels/p1.png does not exist, only: p0.png, p1_mask.png, p2.png")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    refused(FileNotFoundError, "images holds no images")


def test_a_bad_label_map_is_named(opened):
    image, labels = PICTURES["p0"]
    beyond = labels.copy()
    beyond[0, 0] = 3
    for message, bad in {
        "p0.*: a label map of mode RGB": np.stack([labels] * 3, -1),
        "p0.*: a label map as JPEG, which changes ids": encoded(labels, "JPEG"),
        "p0: image is 12x8, label map 8x12": labels.T,
        "label map p0 holds 3: must be 0 to 2 or 255": beyond,
        "label map p0 holds 256: must be 0 to 2 or 255": np.where(labels == 255, 256, labels.astype(np.uint16)),
    }.items():
        for benchmark in opened({"p0": (image, bad)}):
            with pytest.raises(ValueError, match=f"benchmark mine: .*{message}"):
                list(benchmark)


def test_a_sample_s_label_map_is_not_its_picture_and_may_have_a_further_dot(tmp_path):
    image, labels = (encoded(array, kind) for array, kind in zip(PICTURES["p0"], ("BMP", "PNG"), strict=True))
    save(tmp_path / "classes.txt", "cat\nsofa\ntall tree\n")
    write_tar(tmp_path / "b.tar", dict.fromkeys(("p", "p.1", "p.2.x", "._p"), {"bmp": image, "Seg.PNG": labels, "png": labels}))
    for label in ("seg.png", "png"):
        benchmark = open_benchmark("mine", Benchmark(shards=str(tmp_path), label=label, classes=str(tmp_path / "classes.txt")))
        assert len(benchmark) == 3
        for key, (name, picture, stored) in zip(("p", "p.1", "p.2.x"), benchmark, strict=True):
            assert name == key and np.array_equal(stored, PICTURES["p0"][1])
            assert label == "seg.png" or np.array_equal(picture, PICTURES["p0"][0])
        assert benchmark.notes == ["hidden file left out: 3"]


def test_incomplete_shards_are_errors(opened, tmp_path):
    with pytest.raises(ValueError, match=r"mine: .*b-p0.tar: sample p0 has no mask.png next to .* \(see tar --sort=name\)"):
        list(opened(PICTURES, "mask.png")[1])
    missing = Benchmark(shards=str(tmp_path / "no-such-*.tar"), label="seg.png", classes=str(tmp_path / "classes.txt"))
    with pytest.raises(FileNotFoundError, match=f"benchmark mine: no shards at {re.escape(str(tmp_path))}/no-such"):
        open_benchmark("mine", missing)
    whole = (tmp_path / "b-p1.tar").read_bytes()
    for cut in (whole[: len(whole) // 3], whole + whole[: len(whole) // 3]):  # less than the tar, and more after its end
        shards, failed = opened(PICTURES)[1], []
        (tmp_path / "b-p1.tar").write_bytes(cut)
        with pytest.raises(ValueError, match="benchmark mine: .*b-p1.tar: "):
            list(shards)
        assert [key for key, _, _ in shards.samples(1, failed.append)][-1] == "p2" and "b-p1.tar: truncated tar" in str(failed[-1])
