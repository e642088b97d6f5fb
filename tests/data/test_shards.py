import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ovseg.data import shards
from ovseg.data.shards import BadSample, Report, expand

ORIENTATION = 0x0112  # of EXIF


def encoded(image, kind, **options):
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def smooth(height=24, width=16):
    """A picture of its own in each channel that survives JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 255 - 255 * y / height], -1).astype(np.uint8)


def blank_png(width, height):
    """A valid all-black 1-bit PNG of any size, without ever holding its pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join([rows.compress(row * 1000) for _ in range(height // 1000)] + [rows.compress(row * (height % 1000)), rows.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GOOD = {"jpg": encoded(smooth(), "JPEG", quality=95), "txt": b"a cat on the sofa", "json": b"{}"}


def write_tar(path, samples):
    """samples: (key, {extension: bytes}), in order."""
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def read_all(path):
    """Everything that `pairs` finds: ([(key, array, caption)], Report)."""
    report = Report()
    return [(key, np.asarray(image), caption) for key, image, caption in shards.pairs(path, report)], report


def among_good(tmp_path, sample):
    """What comes of a sample between two good ones: (its image and caption or None, Report). The good ones must come through."""
    path = write_tar(tmp_path / "s.tar", [("a", GOOD), ("b", sample), ("c", GOOD)])
    found, report = read_all(path)
    by_key = {key: (image, caption) for key, image, caption in found}
    assert [key for key, _, _ in found] in (["s/a", "s/b", "s/c"], ["s/a", "s/c"])
    assert by_key["s/a"][1] == by_key["s/c"][1] == "a cat on the sofa"
    assert report.pairs == len(found)
    return by_key.get("s/b"), report


# ---- samples that cannot be used


SKIPPED = {
    "broken jpeg": ({**GOOD, "jpg": b"\xff\xd8\xff\xe0 not a jpeg"}, "broken image"),
    "half a jpeg": ({**GOOD, "jpg": GOOD["jpg"][: len(GOOD["jpg"]) // 2]}, "broken image"),
    "empty image": ({**GOOD, "jpg": b""}, "broken image"),
    "html instead of an image": ({**GOOD, "jpg": b"<html>404</html>"}, "broken image"),
    "empty caption": ({**GOOD, "txt": b""}, "empty caption"),
    "blank caption": ({**GOOD, "txt": b" \n\t "}, "empty caption"),
    "no caption": ({"jpg": GOOD["jpg"], "json": b"{}"}, "no caption"),
    "no image": ({"txt": b"a cat", "json": b"{}"}, "no image"),
    "1x1": ({**GOOD, "jpg": encoded(smooth(1, 1), "JPEG")}, "image too small"),
    "200x2": ({**GOOD, "jpg": encoded(smooth(2, 200), "JPEG")}, "image too small"),
    "20000x20000": ({"png": blank_png(20000, 20000), "txt": b"a cat"}, "image too large"),
    "11000x10000": ({"png": blank_png(11000, 10000), "txt": b"a cat"}, "image too large"),  # below what Pillow itself refuses
}


@pytest.mark.parametrize("sample, kind", SKIPPED.values(), ids=SKIPPED)
def test_a_bad_sample_is_skipped_and_counted(tmp_path, sample, kind):
    found, report = among_good(tmp_path, sample)
    assert found is None
    assert report.as_dict() == {"pairs": 2, "skipped": {kind: 1}, "repaired": {}}


def test_bad_samples_in_a_row_are_all_counted(tmp_path):
    bad = [(f"k{index}", sample) for index, (sample, _) in enumerate(SKIPPED.values())]
    found, report = read_all(write_tar(tmp_path / "s.tar", [*bad, ("z", GOOD)]))
    assert [key for key, _, _ in found] == ["s/z"]
    kinds = [kind for _, kind in SKIPPED.values()]
    assert report.skipped == {kind: kinds.count(kind) for kind in kinds}
    assert report.bad_fraction == pytest.approx(len(bad) / (len(bad) + 1))


@pytest.mark.parametrize("sample, kind", SKIPPED.values(), ids=SKIPPED)
def test_decode_raises_the_kind(sample, kind):
    with pytest.raises(BadSample, match=kind):
        shards.decode(sample)


# ---- samples that can be used


def test_a_good_sample_is_neither_skipped_nor_repaired(tmp_path):
    (image, caption), report = among_good(tmp_path, {**GOOD, "txt": "  zwei \n Katzen – süß ".encode()})
    assert caption == "zwei Katzen – süß"
    assert np.abs(image.astype(int) - smooth()).mean() < 4
    assert report.as_dict() == {"pairs": 3, "skipped": {}, "repaired": {}}


@pytest.mark.parametrize("extension, kind", [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("JPG", "JPEG")])
def test_images_may_have_any_of_the_extensions(tmp_path, extension, kind):
    found, report = among_good(tmp_path, {extension: encoded(smooth(), kind), "txt": b"a cat"})
    assert np.abs(found[0].astype(int) - smooth()).mean() < 8 and report.pairs == 3


def test_a_very_long_image_is_used(tmp_path):
    found, report = among_good(tmp_path, {"png": encoded(np.full((30, 20000, 3), 77, np.uint8), "PNG"), "txt": b"a snake"})
    assert found[0].shape == (30, 20000, 3) and (found[0] == 77).all()
    assert report.as_dict() == {"pairs": 3, "skipped": {}, "repaired": {}}


GREY = smooth()[..., 0]
REPAIRED = {
    "CMYK jpeg": ("jpg", encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95), "CMYK to RGB", smooth()),
    "greyscale jpeg": ("jpg", encoded(GREY, "JPEG", quality=95), "L to RGB", np.stack([GREY] * 3, -1)),
    "greyscale png": ("png", encoded(GREY, "PNG"), "L to RGB", np.stack([GREY] * 3, -1)),
    "grey with alpha": ("png", encoded(Image.fromarray(GREY).convert("LA"), "PNG"), "LA to RGB", np.stack([GREY] * 3, -1)),
    "palette": ("png", encoded(Image.fromarray(GREY).convert("P"), "PNG"), "P to RGB", np.stack([GREY] * 3, -1)),
    "opaque RGBA": ("png", encoded(Image.fromarray(smooth()).convert("RGBA"), "PNG"), "RGBA to RGB", smooth()),
    "1 bit": ("png", encoded(Image.fromarray(GREY > 99), "PNG"), "1 to RGB", np.stack([(GREY > 99) * 255] * 3, -1)),
}


@pytest.mark.parametrize("extension, data, kind, expected", REPAIRED.values(), ids=REPAIRED)
def test_other_colours_are_converted_and_counted(tmp_path, extension, data, kind, expected):
    (image, _), report = among_good(tmp_path, {extension: data, "txt": b"a cat"})
    assert report.as_dict() == {"pairs": 3, "skipped": {}, "repaired": {kind: 1}}
    assert np.abs(image.astype(int) - expected).mean() < 4


def test_a_16_bit_image_keeps_its_greys_or_is_skipped(tmp_path):

    found, report = among_good(tmp_path, {"png": encoded(GREY.astype(np.uint16) * 257, "PNG"), "txt": b"a cat"})
    assert sum(report.skipped.values()) + sum(report.repaired.values()) == 1
    assert found is None or np.abs(found[0][..., 0].astype(int) - GREY).mean() < 4


UPRIGHT = {  # what each orientation asks a viewer to do, from the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_rotated_images_come_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (image, _), report = among_good(tmp_path, {"png": encoded(smooth(), "PNG", exif=exif), "txt": b"a cat"})
    assert np.array_equal(image, UPRIGHT[orientation](smooth()))
    assert report.repaired == ({"rotated by EXIF": 1} if orientation > 1 else {})


def test_a_rotated_photograph_in_grey_is_repaired_twice(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (image, _), report = among_good(tmp_path, {"jpg": encoded(GREY, "JPEG", exif=exif, quality=95), "txt": b"a cat"})
    assert np.abs(image[..., 1].astype(int) - np.rot90(GREY, -1)).mean() < 4
    assert report.as_dict() == {"pairs": 3, "skipped": {}, "repaired": {"rotated by EXIF": 1, "L to RGB": 1}}


def test_a_caption_in_another_encoding_keeps_what_can_be_read(tmp_path):
    (_, caption), report = among_good(tmp_path, {**GOOD, "txt": "a café".encode("latin-1")})
    assert caption.startswith("a caf") and report.skipped == {}
    assert sum(report.repaired.values()) == 1


@pytest.mark.parametrize(
    "parts, caption",
    [
        ({"caption": b"a dog"}, "a dog"),
        ({"text": b"a dog", "json": b'{"caption": "a cow"}'}, "a dog"),
        ({"json": '{"caption": "ein Hund f\u00fcr dich", "url": "x"}'.encode()}, "ein Hund f\u00fcr dich"),
        ({"txt": b"a dog", "caption": b"a cow", "json": b'{"caption": "a pig"}'}, "a dog"),  # as before, whatever else there is
    ],
)
def test_captions_are_found_where_others_keep_them(tmp_path, parts, caption):
    path = write_tar(tmp_path / "a.tar", [("Folder/k", {"JPEG": GOOD["jpg"]} | parts)])
    ((key, _, found),), report = read_all(path)
    assert (key, found) == ("a/Folder/k", caption) and not report.skipped and not report.repaired


@pytest.mark.parametrize("described", [b"{", b"[]", b"{}", b'{"caption": null}', b'{"caption": 3}', b"\xff", b"[" * 100_000])
def test_a_description_without_a_caption_is_none(tmp_path, described):
    _, report = read_all(write_tar(tmp_path / "a.tar", [("k", {"jpg": GOOD["jpg"], "json": described})]))
    assert report.skipped == {"no caption": 1}


def test_captions_are_one_line(tmp_path):
    (_, caption), _ = among_good(tmp_path, {**GOOD, "txt": b"a cat\r\n on\ta  sofa\n"})
    assert caption == "a cat on a sofa"


# ---- broken shards


def three_good(path):
    """A shard of three samples; returns its bytes and the offsets where members begin."""
    write_tar(path, [("a", GOOD), ("b", GOOD), ("c", GOOD)])
    with tarfile.open(path) as tar:
        return path.read_bytes(), {member.name: member.offset for member in tar}


@pytest.mark.parametrize("part", ["jpg", "txt"])
def test_samples_before_the_end_of_a_truncated_tar_come_through(tmp_path, part):
    path = tmp_path / "s.tar"
    data, offsets = three_good(path)
    path.write_bytes(data[: offsets[f"c.{part}"] + 512 + 5])  # five bytes into the file
    found, report = read_all(path)
    assert [key for key, _, _ in found] == ["s/a", "s/b"]
    assert report.skipped["truncated tar"] == 1 and report.pairs == 2


@pytest.mark.parametrize("beyond", [0, 100], ids=["before a header", "in a header"])
def test_a_tar_truncated_at_a_header_is_counted_too(tmp_path, beyond):

    path = tmp_path / "s.tar"
    data, offsets = three_good(path)
    path.write_bytes(data[: offsets["c.jpg"] + beyond])
    found, report = read_all(path)
    assert [key for key, _, _ in found] == ["s/a", "s/b"]
    assert sum(report.skipped.values()) == 1


def test_a_tar_with_a_broken_header_is_counted(tmp_path):

    path = tmp_path / "s.tar"
    data, offsets = three_good(path)
    start = offsets["b.jpg"]
    path.write_bytes(data[:start] + b"\x07" * 512 + data[start + 512 :])
    found, report = read_all(path)
    assert [key for key, _, _ in found][0] == "s/a"
    assert sum(report.skipped.values()) >= 1


def test_a_file_name_that_comes_twice_costs_one_sample(tmp_path):

    path = write_tar(tmp_path / "s.tar", [("a", GOOD), ("b", GOOD), ("b", GOOD), ("c", GOOD), ("d", GOOD)])
    found, report = read_all(path)
    assert {"s/a", "s/c", "s/d"} <= {key for key, _, _ in found}
    assert sum(report.skipped.values()) == 1


def test_of_samples_of_one_key_the_first_counts(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a", GOOD), ("b", GOOD | {"txt": b"first"}), ("c", GOOD), ("b", GOOD | {"txt": b"second"})])
    found, report = read_all(path)
    assert [(key, caption) for key, _, caption in found if key == "s/b"] == [("s/b", "first")]
    assert [key for key, _, _ in found] == ["s/a", "s/b", "s/c"] and sum(report.skipped.values()) == 1


def test_a_tar_without_members_holds_nothing(tmp_path):
    found, report = read_all(write_tar(tmp_path / "s.tar", []))
    assert found == [] and report.as_dict() == {"pairs": 0, "skipped": {}, "repaired": {}}


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"x" * 20000, b"\x1f\x8b" + b"\0" * 2000])
def test_a_file_that_is_no_tar_is_counted(tmp_path, data):
    (tmp_path / "s.tar").write_bytes(data)
    found, report = read_all(tmp_path / "s.tar")
    assert found == [] and report.skipped == {"truncated tar": 1}


def test_a_shard_can_be_read_without_a_report(tmp_path):
    path = tmp_path / "s.tar"
    data, offsets = three_good(path)
    path.write_bytes(data[: offsets["c.jpg"] + 600])
    assert [sample["__key__"] for sample in shards.read_samples(path)] == ["a", "b"]


# ---- finding shards


@pytest.fixture
def folder(tmp_path):
    for number in (0, 1, 2, 10):
        write_tar(tmp_path / f"part-{number:02d}.tar", [])
    return tmp_path


@pytest.mark.parametrize(
    "spec, numbers",
    [
        ("part-01.tar", [1]),
        ("part-*.tar", [0, 1, 2, 10]),
        ("part-0?.tar", [0, 1, 2]),
        ("part-{00..02}.tar", [0, 1, 2]),
        ("part-{02,00}.tar", [2, 0]),
    ],
)
def test_expand_finds_the_shards_in_order(folder, spec, numbers):
    assert expand(str(folder / spec)) == [str(folder / f"part-{number:02d}.tar") for number in numbers]


@pytest.mark.parametrize("spec", ["absent.tar", "absent-*.tar", "{5..7}.tar", ""])
def test_expand_of_nothing_names_what_was_sought(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        expand(spec)
    assert f"no shards at {spec}" in str(caught.value) and "webdataset tars" in str(caught.value)


def test_a_brace_range_with_a_shard_missing_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"8 of 11 shards of .*part-\{00\.\.10\}\.tar do not exist, the first .*part-03\.tar"):
        (folder / "part-10.tar").rename(folder / "part-11.tar")
        expand(str(folder / "part-{00..10}.tar"))


def test_a_path_may_hold_brackets(tmp_path):

    (tmp_path / "data[1]").mkdir()
    path = write_tar(tmp_path / "data[1]" / "a.tar", [])
    assert expand(path) == [path]


@pytest.mark.parametrize("name", ["cc3m", "cc[3]m"])
def test_a_folder_stands_for_its_tars(tmp_path, name):
    (tmp_path / name).mkdir()
    paths = [write_tar(tmp_path / name / f"{number:05d}.tar", []) for number in (10, 2, 0)]
    for other in ("00000.parquet", "00000_stats.json", "00000.tar.part"):
        (tmp_path / name / other).touch()
    assert expand(str(tmp_path / name)) == expand(f"{tmp_path}/{name}/") == sorted(paths)


def test_a_folder_without_tars_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected webdataset tars"):
        expand(str(tmp_path))


# ---- squares


@pytest.mark.parametrize("height, width, top, left", [(20, 34, 0, 7), (34, 20, 7, 0), (20, 20, 0, 0), (24, 20, 2, 0)])
def test_square_is_the_centre_of_an_image(height, width, top, left):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(shards.center_crop(Image.fromarray(pixels), 20), pixels[top : top + 20, left : left + 20])


@pytest.mark.parametrize("height, width", [(20, 33), (41, 20), (35, 35), (17, 90)])
def test_square_is_centred(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found, mirrored = (shards.center_crop(Image.fromarray(array), 20).astype(int) for array in (pixels, pixels[::-1, ::-1].copy()))
    assert np.abs(found - mirrored[::-1, ::-1]).max() <= 1


@pytest.mark.parametrize("height, width", [(8, 8), (9, 100), (1000, 33), (30, 20000), (8, 60000)])
def test_square_resizes_the_shorter_side(height, width):
    image = Image.fromarray(np.full((height, width, 3), 50, np.uint8))
    image.paste((255, 0, 0), (width // 2, 0, width, height))  # the right half: the border stays in the middle
    found = shards.center_crop(image, 24)
    assert found.shape == (24, 24, 3) and found.dtype == np.uint8
    assert abs(found[:, :8].astype(int) - 50).max() < 60 and (found[:, 16:, 0] > 195).all()


def test_first_takes_usable_images_in_order(tmp_path):
    bad = SKIPPED["1x1"][0]
    paths = [write_tar(tmp_path / f"{n}.tar", [("a", GOOD), ("bad", bad), ("b", GOOD)]) for n in range(3)]
    found = shards.first(paths, 4, 16)
    assert len(found) == 4 and all(image.shape == (16, 16, 3) for image in found)
    assert len(shards.first(paths, 100, 16)) == 6
