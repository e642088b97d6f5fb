"""Resizing of an image before windows are cut (segment.resize). bicubic: Pillow's, with antialiasing. opencv-bilinear: MMSegmentation's,
i.e. mmcv.imrescale to the scale (2048, 448) and cv2.resize, INTER_LINEAR, without antialiasing: strong downscaling ignores pixels."""

import numpy as np
from PIL import Image


def resized_size(height, width, settings):
    """The size (height, width) that a picture is resized to: the shorter side becomes short_side, unless the longer one would exceed
    max_ratio * short_side. settings: schema.Segment."""
    if settings.resize == "opencv-bilinear":
        longest = round(settings.max_ratio * settings.short_side)  # mmcv's scale is a pair of integers
        scale = min(longest / max(height, width), settings.short_side / min(height, width))
        return tuple(max(1, int(side * scale + 0.5)) for side in (height, width))
    scale = settings.short_side * min(1 / min(height, width), settings.max_ratio / max(height, width))
    return tuple(max(1, round(side * scale)) for side in (height, width))


def resized(image, height, width, how):
    """Resize a PIL RGB image: (height, width, 3) uint8. how: a value of segment.resize."""
    if how == "bicubic":
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    import cv2  # only this option needs it

    return cv2.resize(np.asarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
