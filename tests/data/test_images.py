"""Pictures of any mode as RGB: greys of more than eight bits by their range, EXIF rotations undone."""

import numpy as np
import pytest
from PIL import Image

from ovseg.data.images import rgb

RAMP = np.linspace(0, 1, 24).reshape(4, 6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_greys_are_scaled_from_the_bits_that_their_largest_value_needs(dtype, bits):
    values = (RAMP * (2**bits - 1)).astype(np.int64)
    image = Image.fromarray(values.astype(dtype))
    assert image.mode in ("I;16", "I", "F")
    found = np.asarray(rgb(image))
    assert found.shape == (4, 6, 3) and np.array_equal(found[..., 0], values // 2 ** (bits - 8)) and (found == found[..., :1]).all()


def test_floating_point_shares_are_scaled_to_eight_bits():
    assert np.array_equal(np.asarray(rgb(Image.fromarray(RAMP.astype(np.float32))))[..., 0], np.round(RAMP.astype(np.float32) * 255))
    assert (np.asarray(rgb(Image.fromarray(np.zeros((2, 2), np.float32)))) == 0).all()


@pytest.mark.parametrize("value", [-1, 65536, np.nan, np.inf])
def test_greys_that_are_no_sixteen_bits_are_refused(value):
    kind = np.int32 if np.isfinite(value) else np.float32
    with pytest.raises(ValueError, match="grey values of .*; allowed are 0 to 65535"):
        rgb(Image.fromarray(np.array([[3, value]], kind)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_any_other_mode_is_converted_as_pil_does(mode):
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB")
    image = image.convert(mode) if mode not in ("LAB",) else Image.new("LAB", (6, 4))
    assert np.array_equal(np.asarray(rgb(image)), np.asarray(image.convert("RGB")))


def test_an_exif_rotation_is_undone():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(np.rot90(pixels))
    image.getexif()[0x0112] = 6
    assert np.array_equal(np.asarray(rgb(image)), pixels)
