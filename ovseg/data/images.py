"""Reads pictures and label maps, and crops them to squares. Pictures are upright, 8-bit RGB."""

import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000


class TooLarge(ValueError):
    """A picture has more than MAX_PIXELS pixels; it is refused before it is decoded."""


def read_image(file):
    """Read a picture, or an animation's first frame, as an upright PIL RGB image. file: a path or a binary file object. Raises
    ValueError (one line) if it is not a readable picture, TooLarge if it has too many pixels, and OSError if there is no such file."""
    return decoded(file, to_rgb)


def read_label_map(file):
    """Read a label map: (H, W) integers, as stored. Raises what read_image raises, and ValueError for colour and 1-bit images."""
    return decoded(file, _stored_values)


def decoded(file, convert):
    """Open a picture and return convert(PIL image). Raises what read_image raises; a ValueError of `convert` keeps its message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warnings of size and broken EXIF
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return convert(image)
    except Image.DecompressionBombError:
        raise TooLarge(f"more than {MAX_PIXELS // 10**6} million pixels: make it smaller") from None
    except UnidentifiedImageError:
        raise ValueError("not a picture of a format that Pillow reads") from None
    except Exception as error:  # decoders raise many kinds of error on broken bytes
        if type(error) is ValueError or (isinstance(error, OSError) and error.errno):
            raise
        raise ValueError(f"cannot be decoded: {' '.join(str(error).split())}") from None


def to_rgb(image):
    """Convert any PIL image to RGB, rotated upright according to EXIF. Grey images of more than 8 bits, which PIL would clip
    to white, are scaled to 8 bits from 8, 12 or 16 bits, the fewest that hold the largest value; floating-point images with
    values up to 1 are scaled to 0..255, others are treated as integers. Raises ValueError for grey values outside 0..65535."""
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith(("I", "F")):
        return upright.convert("RGB")
    grey = np.asarray(upright)
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high < 1 << 16):  # NaN too
        raise ValueError(f"grey values of {low:g} to {high:g}: must be between 0 and 65535")
    if grey.dtype.kind == "f" and high <= 1.1:  # resampling may overshoot 1 slightly
        grey = (grey.clip(max=1) * 255).round()
    else:
        grey = grey.astype(np.uint16) >> next(bits - 8 for bits in (8, 12, 16) if high < 1 << bits)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _stored_values(image):
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"a label map of mode {image.mode}: must be a grey or palette image of 8 bits or more")  # 1 bit: 1 or 255?
    return np.asarray(image)


def center_crop(image, size, resample=Image.Resampling.BICUBIC):
    """Crop the central square of a PIL image and resize it: (size, size, 3) uint8, or (size, size) for a label map."""
    side = min(image.size)
    left, top = ((extent - side) / 2 for extent in image.size)
    return np.array(image.resize((size, size), resample, (left, top, left + side, top + side)))
