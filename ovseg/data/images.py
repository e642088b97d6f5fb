"""PIL images made uniform: upright, eight bits, RGB, square."""

import numpy as np
from PIL import Image, ImageOps


def rgb(image):
    """Any PIL image as RGB, upright as its EXIF asks. Raises ValueError for greys that are no numbers of up to 16 bits.

    Greys of more than eight bits, which PIL itself would clip to white, are scaled to eight: from 8, 12 or 16 bits, whichever the largest
    value needs. Floating-point greys of up to 1 are scaled to 0..255, others are taken as integers.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = Image.fromarray(_eight_bits(np.asarray(upright)))
    return upright.convert("RGB")


def _eight_bits(grey):
    """(H, W) numbers -> (H, W) uint8, by the rule of `rgb`."""
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high < 1 << 16):  # NaN too
        raise ValueError(f"grey values of {low:g} to {high:g}; allowed are 0 to 65535")
    if grey.dtype.kind == "f" and high <= 1.1:  # resampling leaves values a little above 1
        return (grey.clip(max=1) * 255).round().astype(np.uint8)
    bits = next(bits for bits in (8, 12, 16) if high < 1 << bits)
    return (grey.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def label_map(image):
    """The label map in a PIL image: (H, W) indices. Raises ValueError for one of colours, or of one bit, which may mean 1 or 255."""
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"a label map of mode {image.mode}; allowed are greys and palettes of eight bits or more, an index a pixel")
    return np.asarray(image)


def center_crop(image, size):
    """The central square of a PIL image, resized (bicubic) to (size, size, 3) uint8."""
    side = min(image.size)
    left, top = ((extent - side) / 2 for extent in image.size)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
