"""What tests share: the settings of a tiny model, a bank of captions, pictures to segment, interpolation by loops."""

import copy
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg import params
from ovseg.data.captions import TextBank, nouns

ROOT = Path(__file__).resolve().parents[1]
P = params.load(path=ROOT / "params.yaml")
TINY = P.pretrain.model_copy(
    update={"size": 32, "patch": 8, "embed_dim": 16, "vision_width": 64, "vision_layers": 2, "text_width": 64, "text_layers": 1}
)
SETTINGS = P.segment.model_copy(
    update={"unit": "pixel", "short_side": 32, "window": 32, "stride": 16, "batch": 4, "meta_points": 4, "precision": "float32"}
    | {"templates": ["a {}.", "many {}."]}
)


def bank_of(captions, templates):
    """The TextBank of captions, one per pair."""
    return TextBank.collect(((caption, nouns(caption)) for caption in captions), templates)


def changed(**values):
    return SETTINGS.model_copy(update=values)


def reading(clip, mode):
    """The same CLIP that reads dense features in another mode."""
    other = copy.copy(clip)
    other.dense = mode
    return other


def contents(folder):
    """{path: bytes} of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def picture(height, width, seed=0):
    """A smooth random picture, so that resizing it does not leave it grey."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="PNG", **options):
    """The bytes of a file of an image, which is a PIL image or an array."""
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def save(path, content):
    """Write bytes, text, or an array as image, to a file in a folder that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        Image.fromarray(np.array(content, np.uint8 if np.max(content) < 256 else np.uint16)).save(path)


def write_benchmark(folder, maps, classes, image=None):
    """A folder benchmark of label maps (H, W), with random pictures of the same sizes, or with the bytes `image` as each picture."""
    for index, labels in enumerate(maps):
        save(folder / f"images/{index}.png", image or picture(*np.shape(labels), index))
        save(folder / f"labels/{index}.png", labels)
    save(folder / "classes.txt", "\n".join(classes))
    return folder


def bilinear(array, height, width):
    """Bilinear interpolation of a (h, w) array between pixel centres, a pixel at a time."""
    h, w = array.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v, u = max(0, (y + 0.5) * h / height - 0.5), max(0, (x + 0.5) * w / width - 0.5)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            above = array[top, left] * (1 - u + left) + array[top, right] * (u - left)
            below = array[bottom, left] * (1 - u + left) + array[bottom, right] * (u - left)
            out[y, x] = above * (1 - v + top) + below * (v - top)
    return out
