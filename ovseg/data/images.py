"""PIL images made uniform: upright, eight bits, RGB, square."""

import numpy as np
from PIL import Image, ImageOps


def rgb(image):
    """Any PIL image as RGB, upright as its EXIF asks. 16-bit greys are scaled down; PIL itself would clip them to white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def center_crop(image, size):
    """The central square of a PIL image, resized (bicubic) to (size, size, 3) uint8."""
    side = min(image.size)
    left, top = ((extent - side) / 2 for extent in image.size)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
