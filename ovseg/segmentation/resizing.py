"""Resizing of an image before windows are cut (segment.resize): target size and interpolation.

bicubic: Pillow's, with antialiasing.
opencv-bilinear: MMSegmentation's pipeline, i.e. mmcv.imrescale to the scale (2048, 448) and cv2.resize, INTER_LINEAR. Reimplemented
without OpenCV, identical to it in every pixel on x86. It does not antialias: strong downscaling ignores part of the pixels.
"""

import numpy as np
from PIL import Image

BITS = 11  # precision of OpenCV's fixed-point weights


def resized_size(height, width, settings):
    """The size (height, width) that a picture is resized to. settings: schema.Segment.

    The shorter side becomes short_side, unless the longer one would exceed max_ratio * short_side.
    """
    if settings.resize == "opencv-bilinear":
        longest = round(settings.max_ratio * settings.short_side)  # mmcv's scale is a pair of integers
        scale = min(longest / max(height, width), settings.short_side / min(height, width))
        return tuple(max(1, int(side * scale + 0.5)) for side in (height, width))
    scale = settings.short_side * min(1 / min(height, width), settings.max_ratio / max(height, width))
    return tuple(max(1, round(side * scale)) for side in (height, width))


def resized(image, height, width, how):
    """Resize a PIL RGB image: (height, width, 3) uint8. how: a value of segment.resize."""
    if image.size == (width, height):
        return np.asarray(image)
    if how == "opencv-bilinear":
        return opencv_bilinear(np.asarray(image), height, width)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def opencv_bilinear(pixels, height, width):
    """cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR) of (h, w, channels) uint8.

    Horizontally, the sum of two products keeps all bits. Vertically, OpenCV drops 4 bits of each sum and 16 bits of each product, and
    rounds off the last 2 bits of the result.
    """
    (left, right), (of_left, of_right) = _neighbours(pixels.shape[1], width)
    (top, bottom), (of_top, of_bottom) = _neighbours(pixels.shape[0], height)
    pixels = pixels.astype(np.int32)
    rows = (pixels[:, left] * of_left[:, None] + pixels[:, right] * of_right[:, None]) >> 4  # h, width, channels
    columns = (rows[top] * of_top[:, None, None] >> 16) + (rows[bottom] * of_bottom[:, None, None] >> 16)
    return (columns + 2 >> 2).astype(np.uint8)


def _neighbours(before, after):
    """For each of `after` output pixels, its two neighbours among `before` input pixels and their weights: two pairs of (after,) int32."""
    place = ((np.arange(after) + 0.5) * (1 / (after / before)) - 0.5).astype(np.float32)
    first = np.floor(place)
    weights = tuple(np.rint(share * (1 << BITS)).astype(np.int32) for share in (1 - (place - first), place - first))
    return tuple(np.clip(first.astype(np.int32) + step, 0, before - 1) for step in (0, 1)), weights
