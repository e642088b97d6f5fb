"""Pairs in shards: which samples are used, repaired or skipped, broken tars, and finding shards."""

import io
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import bank_of, encoded

from ovseg.data import images, preparation, shards
from ovseg.data.shards import BadSample, Report, expand


def smooth(height=24, width=16):
    """A picture with different channels that survives JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 255 - 255 * y / height], -1).astype(np.uint8)


GOOD = {"jpg": encoded(smooth(), "JPEG", quality=95), "txt": b"a cat on the sofa", "json": b"{}"}


def write_tar(path, samples, mode="w"):
    """samples: (key, {extension: bytes}), in order."""
    with tarfile.open(path, mode) as tar:
        for key, parts in samples:
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def read_all(path):
    """Everything that `read_pairs` yields: ([(key, array, caption)], Report)."""
    report = Report()
    return [(key, np.asarray(image), caption) for key, image, caption in shards.read_pairs(path, report)], report


def among_good(tmp_path, sample):
    """A sample between two good ones: (its image and caption or None, skipped and repaired samples). The good ones must come through."""
    pairs, report = read_all(write_tar(tmp_path / "s.tar", [("a", GOOD), ("b", sample), ("c", GOOD)]))
    by_key = {key: (image, caption) for key, image, caption in pairs}
    assert [key for key, _, _ in pairs] in (["s/a", "s/b", "s/c"], ["s/a", "s/c"])
    assert by_key["s/a"][1] == by_key["s/c"][1] == "a cat on the sofa" and report.pairs == len(pairs)
    return by_key.get("s/b"), report.skipped | report.repaired


OTHER_JSON = (b"{", b"[]", b'{"caption": null}', b'{"caption": 3}', b"\xff", b"[" * 100_000)
SKIPPED = {
    "broken jpeg": ({**GOOD, "jpg": b"\xff\xd8\xff\xe0 not a jpeg"}, "broken image"),
    "half a jpeg": ({**GOOD, "jpg": GOOD["jpg"][: len(GOOD["jpg"]) // 2]}, "broken image"),
    "empty image": ({**GOOD, "jpg": b""}, "broken image"),
    "blank caption": ({**GOOD, "txt": b" \n\t "}, "empty caption"),
    "no caption": ({"jpg": GOOD["jpg"], "json": b"{}"}, "no caption"),
    "no image": ({"txt": b"a cat", "json": b"{}"}, "no image"),
    "1x1": ({**GOOD, "jpg": encoded(smooth(1, 1), "JPEG")}, "image too small"),
    "200x2": ({**GOOD, "jpg": encoded(smooth(2, 200), "JPEG")}, "image too small"),
    **{repr(json[:15]): ({"jpg": GOOD["jpg"], "json": json}, "no caption") for json in OTHER_JSON},
    "300x300": ({**GOOD, "jpg": encoded(smooth(300, 300), "JPEG")}, "image too large"),
}


@pytest.mark.parametrize("sample, kind", SKIPPED.values(), ids=SKIPPED)
def test_a_bad_sample_is_skipped_and_counted(tmp_path, monkeypatch, sample, kind):
    monkeypatch.setattr(images, "MAX_PIXELS", 300 * 300 - 1)
    assert among_good(tmp_path, sample) == (None, {kind: 1})
    with pytest.raises(BadSample, match=kind):
        shards.decode(sample)


GREY, TURNED = smooth()[..., 0], Image.Exif()
TURNED[0x0112] = 6
GREYS = np.stack([GREY] * 3, -1)
REPAIRED = {  # extension, data, kinds, expected
    **{name: (name, encoded(smooth(), kind), [], smooth()) for name, kind in (("jpeg", "JPEG"), ("webp", "WEBP"), ("JPG", "JPEG"))},
    "CMYK jpeg": ("jpg", encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95), ["CMYK to RGB"], smooth()),
    "greyscale jpeg": ("jpg", encoded(GREY, "JPEG", quality=95), ["L to RGB"], GREYS),
    "palette": ("png", encoded(Image.fromarray(GREY).convert("P"), "PNG"), ["P to RGB"], GREYS),
    "opaque RGBA": ("png", encoded(Image.fromarray(smooth()).convert("RGBA"), "PNG"), ["RGBA to RGB"], smooth()),
    "1 bit": ("png", encoded(Image.fromarray(GREY > 99), "PNG"), ["1 to RGB"], np.stack([(GREY > 99) * 255] * 3, -1)),
    "16 bit": ("png", encoded(GREY.astype(np.uint16) * 257, "PNG"), ["I;16 to RGB"], GREYS),
    "turned": ("png", encoded(smooth(), "PNG", exif=TURNED), ["rotated by EXIF"], np.rot90(smooth(), -1)),
    "turned grey": ("jpg", encoded(GREY, "JPEG", exif=TURNED, quality=95), ["L to RGB", "rotated by EXIF"], np.rot90(GREYS, -1)),
}


@pytest.mark.parametrize("extension, data, kinds, expected", REPAIRED.values(), ids=REPAIRED)
def test_images_are_read_and_other_colours_and_turned_ones_counted(tmp_path, extension, data, kinds, expected):
    (image, _), counts = among_good(tmp_path, {extension: data, "txt": b"a cat"})
    assert counts == dict.fromkeys(kinds, 1) and np.abs(image.astype(int) - expected).mean() < 8


def test_captions_are_read_from_txt_caption_text_or_json(tmp_path):
    for parts, caption in (
        ({"txt": "  zwei \r\n Katzen –\ta  süß\n".encode()}, "zwei Katzen – a süß"),
        ({"text": b"a dog", "json": b'{"caption": "a cow"}'}, "a dog"),
        ({"json": '{"caption": "ein Hund f\u00fcr dich", "url": "x"}'.encode()}, "ein Hund f\u00fcr dich"),
        ({"txt": b"a dog", "caption": b"a cow", "json": b'{"caption": "a pig"}'}, "a dog"),  # txt comes first
    ):
        ((key, _, read),), report = read_all(write_tar(tmp_path / "a.tar", [("Folder/k", {"JPEG": GOOD["jpg"]} | parts)]))
        assert (key, read) == ("a/Folder/k", caption) and report == Report(1)


def test_a_caption_in_another_encoding_keeps_what_can_be_read(tmp_path):
    (_, caption), counts = among_good(tmp_path, {**GOOD, "txt": "a café".encode("latin-1")})
    assert caption == "a caf\ufffd" and counts == {"caption not UTF-8": 1}


BROKEN = {
    "in a picture": (lambda data, at: data[: at["c.jpg"] + 517], "ab"),
    "in a caption": (lambda data, at: data[: at["c.txt"] + 517], "ab"),
    "before a header": (lambda data, at: data[: at["c.jpg"]], "ab"),
    "in a header": (lambda data, at: data[: at["c.jpg"] + 100], "ab"),
    "without an end": (lambda data, at: data[: at["c.json"] + 1024], "abc"),
    "broken header": (lambda data, at: data[: at["b.jpg"]] + b"\x07" * 512 + data[at["b.jpg"] + 512 :], "a"),
    "compressed": (lambda data, at: zlib.compress(data, wbits=31)[:-9], "abc"),
    **{repr(data[:9]): (lambda *_, data=data: data, "") for data in (b"", b"no tar at all", b"x" * 20000, b"\x1f\x8b" + b"\0" * 2000)},
}


@pytest.mark.parametrize("change, keys", BROKEN.values(), ids=BROKEN)
def test_a_broken_tar_ends_early_and_is_counted_once(tmp_path, change, keys):
    path = Path(write_tar(tmp_path / "s.tar", [(key, GOOD) for key in "abc"]))
    with tarfile.open(path) as tar:
        starts = {member.name: member.offset for member in tar}
    path.write_bytes(change(path.read_bytes(), starts))
    pairs, report = read_all(tmp_path / "s.tar")
    assert [key for key, _, _ in pairs][: len(keys)] == [f"s/{key}" for key in keys] and len(pairs) <= len(keys) + 1
    assert report.skipped["truncated tar"] == 1 and set(report.skipped) <= {"truncated tar", "no caption"}
    assert [sample["__key__"] for sample in shards.read_samples(tmp_path / "s.tar")][: len(keys)] == list(keys)  # without a report


def test_whole_tars_are_not_counted(tmp_path):
    assert read_all(write_tar(tmp_path / "s.tar", [])) == ([], Report())
    pairs, report = read_all(write_tar(tmp_path / "s.tar.gz", [("__meta__/m", GOOD), ("a", GOOD), ("b", GOOD)], "w:gz"))
    assert len(pairs) == 2 and report == Report(2)


def test_of_repeated_names_the_first_counts(tmp_path):
    other = GOOD | {"txt": b"second"}
    for order in ("abbcd", "abcbd"):  # files of one name; samples of one key
        samples = [(key, other if key in order[:n] else GOOD) for n, key in enumerate(order)]
        pairs, report = read_all(write_tar(tmp_path / "s.tar", samples))
        assert [key for key, _, _ in pairs] == ["s/a", "s/b", "s/c", "s/d"] and {caption for *_, caption in pairs} == {"a cat on the sofa"}
        assert report.skipped == {"file name twice" if order == "abbcd" else "key twice": 1}


def test_a_further_dot_is_part_of_the_key_of_a_complete_sample(tmp_path):
    caption, labels = {**GOOD, "txt": b"a dog"}, {"seg.png": encoded(GREY, "PNG")}
    del caption["json"]
    for number, (samples, keys) in enumerate((
        ([("c0", GOOD | labels), ("c0.1", GOOD | labels), ("c0.2", caption), ("c1.1", GOOD)], ["c0", "c0.1", "c0.2", "c1.1"]),
        ([("i_jpg.rf.aa", {"JPG": GOOD["jpg"], "TXT": b"a cat"}), ("i_jpg.rf.bb", caption)], ["i_jpg.rf.aa", "i_jpg.rf.bb"]),
        ([("v1.0/a.b", {"bmp": encoded(smooth(), "BMP"), "json": b'{"caption": "a cat"}'})], ["v1.0/a.b"]),
        ([("a", GOOD | {"seg.png": b"", "seg.json": b"{}", "notes.txt": b"no image"})], ["a"]),
    )):  # fmt: skip
        pairs, report = read_all(path := write_tar(tmp_path / f"{number}.tar", samples))
        assert [key for key, *_ in pairs] == [f"{number}/{key}" for key in keys] and report == Report(len(keys))
        assert [sample.keys() >= {"seg.png"} for sample in shards.read_samples(path)][:2] == [number in (0, 3)] * min(2, len(keys))
    alone = write_tar(tmp_path / "l.tar", [(key, {"jpg": GOOD["jpg"], "SEG.png": b""}) for key in ("cat0", "cat0.1")])
    assert [sample["__key__"] for sample in shards.read_samples(alone, label="seg.png")] == ["cat0", "cat0.1"]
    _, report = read_all(write_tar(tmp_path / "n.tar", [("a", {"input.jpg": GOOD["jpg"], "txt": b"a cat"})]))
    assert report.skipped == {"no image (but in a file with a further dot)": 1}


def test_files_apart_in_the_tar_are_told_from_repeated_keys(tmp_path):
    parts = [(key, {name: GOOD[name]}) for name in ("jpg", "txt") for key in "ab"]
    _, report = read_all(write_tar(tmp_path / "s.tar", parts))
    assert report.skipped == {"no caption": 2, "files of a sample apart in the tar: write it with tar --sort=name": 2}


def test_hidden_files_and_names_that_are_no_utf_8_or_no_line_are_repaired(tmp_path):
    names = {"caf\udce9": "caf\\udce9", "two\nlines\r": "two\\nlines\\r", "\U0001f431 é": "\U0001f431 é", "x/._y": None, "x/y": "x/y"}
    pairs, report = read_all(write_tar(tmp_path / "s.tar", [(name, {"jpg": GOOD["jpg"], "txt": b"a cat"}) for name in names]))
    assert [key for key, *_ in pairs] == [f"s/{key}" for key in names.values() if key] and not report.skipped
    assert report.repaired == {"key with line breaks or not UTF-8": 2, "hidden file left out": 2}
    rest = [*map(list, zip(*pairs, strict=True))][0]
    preparation.save(tmp_path / "p", ["\udce9/s.tar"], rest, bank_of([], []))
    assert preparation.load_keys(tmp_path / "p") == rest and preparation.load_paths(tmp_path / "p") == ["\udce9/s.tar"]


def test_a_folder_s_subfolders_are_read(tmp_path):
    for name in ("b/c/0.tar", "1.TAR", "b/2.tar", "b/._2.tar", "b/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [f"{tmp_path}/{name}" for name in ("1.TAR", "b/2.tar", "b/c/0.tar")]
    assert expand(str(tmp_path)) == expected and expand(f"{tmp_path}/**/*.tar") == expected[1:]


@pytest.fixture
def folder(tmp_path):
    for name in ("cc[3]m", "empty"):
        (tmp_path / name).mkdir()
    for number in (0, 1, 2, 10):
        write_tar(tmp_path / f"cc[3]m/part-{number:02d}.tar", [])
    for other in ("00000.parquet", "00000_stats.json", "00000.tar.part"):
        (tmp_path / "cc[3]m" / other).touch()
    return tmp_path


def test_expand_finds_the_shards_in_order(folder):
    specs = {"cc[3]m/part-01.tar": [1], "*/part-*.tar": [0, 1, 2, 10], "*/part-0?.tar": [0, 1, 2], "cc[[]3]m/part-{00..02}.tar": [0, 1, 2]}
    for spec, numbers in (specs | {"*/part-{02,00}.tar": [2, 0], "cc[3]m": [0, 1, 2, 10], "cc[3]m/": [0, 1, 2, 10]}).items():
        assert expand(f"{folder}/{spec}") == [f"{folder}/cc[3]m/part-{number:02d}.tar" for number in numbers]


def test_expand_of_nothing_and_a_brace_range_with_a_shard_missing_are_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for spec in ("absent.tar", "absent-*.tar", "{5..7}.tar", "", "empty"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no shards at {spec}") + ".*: expected webdataset tars"):
            expand(spec)
    with pytest.raises(shards.Incomplete, match=r"8 of 11 shards of .*part-\{00\.\.10\}\.tar do not exist, the first .*part-00\.tar"):
        (folder / "cc[3]m/part-00.tar").rename(folder / "cc[3]m/part-11.tar")
        expand(f"{folder}/*/part-{{00..10}}.tar")


def test_first_images_are_the_first_usable_ones(tmp_path):
    samples = [("a", GOOD), ("bad", SKIPPED["1x1"][0]), ("b", GOOD)]
    paths = [write_tar(tmp_path / f"{n}.tar", samples) for n in range(3)]
    assert np.stack(shards.first_images(paths, 4, 16)).shape == (4, 16, 16, 3) and len(shards.first_images(paths, 100, 16)) == 6
