"""Finds and reads pictures and label maps, and crops them to squares. Pictures are upright, 8-bit RGB."""

import functools
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 100_000_000
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # Pillow refuses a text of more than 1 MB, such as a generator's workflow
TURNED = "turned"  # key of image.info: the (width, height) that a picture had before EXIF turned it
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")  # Pillow's formats of label maps
SHOWN = 5  # files that a message names
SCALES = {"1": 1, "L;2": 85, "L;4": 17}  # raw modes whose values Pillow multiplies; it reads those of 1 bit as False and True


class TooLarge(ValueError):
    """A picture has more than MAX_PIXELS pixels; it is refused before it is decoded."""


def some(items):
    """The first items of a list of texts, and how many more there are, as a text."""
    return ", ".join([*items[:SHOWN], *[f"and {len(items) - SHOWN} more"] * (len(items) > SHOWN)])


@functools.cache
def suffixes():
    """Suffixes of the pictures that Pillow reads, lower case, without the dot; the usual ones come first."""
    Image.preinit()
    Image.init()
    known = sorted(suffix[1:] for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    return tuple(dict.fromkeys(["jpg", "jpeg", "png", "webp", *known]))


def is_picture(path):
    """Whether a path has a picture's suffix, in upper or lower case, and is not hidden, as macOS's ._ files are."""
    return Path(path).suffix.lower()[1:] in suffixes() and not any(part.startswith(".") for part in Path(path).parts)


def list_pictures(folder):
    """(pictures, other files) in a folder and its subfolders, sorted lists of Path."""
    paths = sorted(Path(folder).rglob("*"))
    pictures = [path for path in paths if is_picture(path.relative_to(folder))]
    return pictures, [path for path in sorted({*paths} - {*pictures}) if path.is_file()]


def read_image(file):
    """Read a picture, or an animation's first frame, as an upright PIL RGB image. file: a path or a binary file object. Raises
    ValueError (one line) if it is not a readable picture, TooLarge if it has too many pixels, and OSError if there is no such file."""
    return decoded(file, to_rgb)


def read_label_map(file):
    """Read a label map: a PIL image of mode L, P, I or I;16 that holds the values as stored. Raises what read_image raises, and ValueError
    for colour images and for formats that may change values."""
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
    rgb = _scaled(upright) if upright.mode.startswith(("I", "F")) else upright.convert("RGB")
    if image.getexif().get(0x0112) in range(2, 9):
        rgb.info[TURNED] = image.size
    return rgb


def _scaled(image):
    grey = np.asarray(image)
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high < 1 << 16):  # NaN too
        raise ValueError(f"grey values of {low:g} to {high:g}: must be between 0 and 65535")
    if grey.dtype.kind == "f" and high <= 1.1:  # resampling may overshoot 1 slightly
        grey = (grey.clip(max=1) * 255).round()
    else:
        grey = grey.astype(np.uint16) >> next(bits - 8 for bits in (8, 12, 16) if high < 1 << bits)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _stored_values(image):
    if image.format not in LOSSLESS or image.info.get("compression") == "jpeg":
        raise ValueError(f"a label map as {image.format}, which changes ids: must be a PNG")
    arguments = image.tile[0].args
    raw = next((text for text in (arguments if isinstance(arguments, tuple) else [arguments]) if isinstance(text, str)), image.mode)
    if raw in SCALES:
        return Image.fromarray(np.asarray(image).astype(np.uint8) // SCALES[raw])
    if image.mode not in ("L", "P", "I", "I;16", "I;16B") or raw.startswith("L;"):  # such as L;I, which Pillow inverts
        raise ValueError(f"a label map of mode {image.mode}: must be a grey or palette image")
    return image.copy()


def center_crop(image, size, resample=Image.Resampling.BICUBIC):
    """Crop the central square of a PIL image and resize it: (size, size, 3) uint8, or (size, size) for a label map."""
    side = min(image.size)
    left, top = ((extent - side) / 2 for extent in image.size)
    return np.array(image.resize((size, size), resample, (left, top, left + side, top + side)))
