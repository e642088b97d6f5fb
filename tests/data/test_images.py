"""Reading of pictures and label maps: modes, EXIF, broken files; the centre crop."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiny import encoded, save

from ovseg.data import images
from ovseg.data.images import center_crop, read_image, read_label_map, to_rgb

RAMP = np.linspace(0, 1, 24).reshape(4, 6)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
UPRIGHT = {  # what each EXIF orientation asks a viewer to do
    **{1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]},
    **{5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)},
}


def file_of(array, **options):
    return io.BytesIO(encoded(array, **options))


def test_pictures_are_read_upright():
    exif = Image.Exif()
    for exif[0x0112], upright in UPRIGHT.items():
        assert np.array_equal(read_image(file_of(PIXELS, exif=exif)), upright(PIXELS))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_greys_are_scaled_from_the_bits_of_their_largest_value(dtype, bits):
    values = (RAMP * (2**bits - 1)).astype(np.int64)
    assert np.array_equal(to_rgb(Image.fromarray(values.astype(dtype))), np.stack([values // 2 ** (bits - 8)] * 3, -1))


def test_floating_point_values_up_to_one_are_scaled():
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(RAMP.astype(np.float32))))[..., 0], np.round(RAMP.astype(np.float32) * 255))
    assert not np.asarray(to_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))).any()


@pytest.mark.parametrize("value", [-1, 65536, np.nan, np.inf])
def test_greys_outside_16_bits_are_rejected(value):
    kind = np.int32 if np.isfinite(value) else np.float32
    with pytest.raises(ValueError, match="grey values of .*: must be between 0 and 65535"):
        to_rgb(Image.fromarray(np.array([[3, value]], kind)))


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.gif"), np.full((4, 4, 3), (255, 0, 0)))


PNG, JPEG = (encoded(PIXELS[..., 0], kind) for kind in ("PNG", "JPEG"))


@pytest.mark.parametrize("read", [read_image, read_label_map])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", PNG[:60], PNG[:-300], JPEG[:-300]], ids=range(5))
def test_a_broken_picture_is_a_value_error_of_one_line(read, content):
    with pytest.raises(ValueError, match="not a picture of a format that Pillow reads|cannot be decoded: |a label map as JPEG") as caught:
        read(io.BytesIO(content))
    assert len(str(caught.value).splitlines()) == 1


def test_too_many_pixels_and_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 36)
    assert read_image(file_of(PIXELS)).size == (36, 24)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 36 - 1)
    with pytest.raises(images.TooLarge, match="more than 0 million pixels: make it smaller"):
        read_image(file_of(PIXELS))


def test_label_maps_are_read_as_stored(tmp_path):
    stored = np.array([[0, 7], [255, 3]], np.uint8)
    palette = Image.fromarray(stored)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "p.png")
    for file in (file_of(stored), tmp_path / "p.png"):
        assert np.array_equal(read_label_map(file), stored)
    assert np.array_equal(read_label_map(file_of(stored.astype(np.uint16) * 200)), stored * 200.0)
    with pytest.raises(ValueError, match="a label map of mode RGB: must be a grey or palette image"):
        read_label_map(file_of(PIXELS))
    for kind in ("JPEG", "MPO"):  # whatever the file's name says
        with pytest.raises(ValueError, match="a label map as (JPEG|MPO), which changes ids: must be a PNG"):
            read_label_map(file_of(stored, kind=kind))


def png_of(ids, bits, colour):
    """A PNG file by its specification, independent of Pillow. ids: (H, W). colour: 0 grey, 3 palette."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.unpackbits(ids[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :].reshape(len(ids), -1)
    header = struct.pack(">2I5B", ids.shape[1], ids.shape[0], bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(40, 40 + 3 * 2**bits))) if colour == 3 else b""
    data = zlib.compress(b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("colour", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_ids_of_few_bits_are_read_as_stored(bits, colour):
    ids = np.random.default_rng(bits).integers(0, 2**bits, (11, 13))
    read = np.asarray(read_label_map(png_of(ids, bits, colour)))
    assert read.dtype == np.uint8 and np.array_equal(read, ids)


def test_pictures_are_listed_by_the_suffixes_that_pillow_reads_and_others_apart(tmp_path):
    pictures = ["a.JPG", "b.bmp", "b.c.tif", "d.jfif", "e.Jpe", "sub/f.gif"]
    others = ["._a.JPG", ".hidden/g.png", "h.heic", "notes"]
    for name in pictures + others:
        save(tmp_path / name, "")
    found = [[path.relative_to(tmp_path).as_posix() for path in paths] for paths in images.list_pictures(tmp_path)]
    assert [sorted(names) for names in found] == [sorted(pictures), sorted(others)]


def test_a_png_with_a_long_compressed_text_is_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    assert np.array_equal(read_image(file_of(PIXELS, pnginfo=info)), PIXELS)


def test_a_crop_is_the_centre():
    for height, width, top, left in ((20, 34, 0, 7), (34, 20, 7, 0), (20, 20, 0, 0), (24, 20, 2, 0)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(center_crop(Image.fromarray(pixels), 20), pixels[top : top + 20, left : left + 20])


@pytest.mark.parametrize("height, width", [(20, 33), (41, 20), (35, 35), (8, 60000)])
def test_a_resized_crop_is_symmetric(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop, turned = (center_crop(Image.fromarray(array), 20).astype(int) for array in (pixels, pixels[::-1, ::-1].copy()))
    assert crop.shape == (20, 20, 3) and np.abs(crop - turned[::-1, ::-1]).max() <= 1


def test_a_crop_of_labels_invents_no_label():
    labels = np.random.default_rng(0).choice([0, 9, 255], (30, 42)).astype(np.uint8)
    crop = center_crop(Image.fromarray(labels), 10, Image.Resampling.NEAREST)
    assert np.array_equal(crop, labels[1::3, 7:36:3])  # the middle of each 3x3 cell of the columns 6 to 35
