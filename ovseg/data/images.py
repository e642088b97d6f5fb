"""Conversion of PIL images to a uniform format: upright, 8-bit, RGB, square."""

import numpy as np
from PIL import Image, ImageOps


def rgb(image):
    """Convert any PIL image to RGB, rotated upright according to EXIF. Raises ValueError for grey values outside 0..65535.

    Grey images of more than 8 bits, which PIL would clip to white, are scaled to 8 bits from 8, 12 or 16 bits, the fewest that hold
    the largest value. Floating-point images with values up to 1 are scaled to 0..255; others are treated as integers.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = Image.fromarray(_eight_bits(np.asarray(upright)))
    return upright.convert("RGB")


def _eight_bits(grey):
    """(H, W) numbers -> (H, W) uint8, scaled as described in `rgb`."""
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high < 1 << 16):  # NaN too
        raise ValueError(f"grey values of {low:g} to {high:g}; allowed are 0 to 65535")
    if grey.dtype.kind == "f" and high <= 1.1:  # resampling may overshoot 1 slightly
        return (grey.clip(max=1) * 255).round().astype(np.uint8)
    bits = next(bits for bits in (8, 12, 16) if high < 1 << bits)
    return (grey.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def label_map(image):
    """Read a label map from a PIL image: (H, W) indices. Raises ValueError for colour images, and for 1-bit ones (1 or 255 is unclear)."""
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"a label map of mode {image.mode}; allowed are greys and palettes of eight bits or more, an index a pixel")
    return np.asarray(image)


def read_image(file):
    """Read a picture as upright PIL RGB. file: path or binary file object. Raises ValueError, or OSError for a missing file."""
    return _read(file, rgb)


def read_label_map(file):
    """Read a label map as (H, W) indices. Arguments and errors: see `read_image`; also ValueError for colour and 1-bit images."""
    return _read(file, label_map)


def _read(file, convert):
    try:
        with Image.open(file) as image:
            return convert(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise many kinds of error on corrupt bytes
        raise ValueError(f"not a readable picture: {error}") from None


def center_crop(image, size, resample=Image.Resampling.BICUBIC):
    """Crop the central square of a PIL image and resize it: (size, size, 3) or, for one channel, (size, size)."""
    side = min(image.size)
    left, top = ((extent - side) / 2 for extent in image.size)
    return np.array(image.resize((size, size), resample, (left, top, left + side, top + side)))
