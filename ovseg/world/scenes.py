"""The rendered world: cartoon scenes of *things* on *stuff*, with noisy captions and exact label maps.

A thing consists of several differently coloured parts, and things share colours (a house's roof has a car's red). The pixels of one object
therefore disagree, which is the problem that semantic units solve. Stuff is texture. As on the web, captions omit some of the classes in
the picture and sometimes name absent ones.
"""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from ..data.files import write_whole
from ..data.shards import parallel

TRAIN, BENCHMARK, PRETRAIN, CALIBRATION = 0, 1, 2, 3  # splits: no two share a picture
PER_SHARD = 1024

_YAML = YAML(typ="safe").load(Path(__file__).with_name("things.yaml").read_text(encoding="utf-8"))
THINGS = {  # {name: [(shape, RGB, coordinates), ...]}, the parts in drawing order
    name: [(shape, tuple(_YAML["colours"][colour]), tuple(points)) for shape, colour, points in parts]
    for name, parts in _YAML["things"].items()
}
STUFF = _YAML["stuff"]  # {name: RGB}
CLASSES = (*THINGS, *STUFF)  # a label map holds indices into this
GROUNDS = ("grass", "sand", "snow", "road", "water", "wood")
WALLS = ("sky", "sky", "sky", "brick", "wood")  # above the horizon; sky is more frequent than walls
CAPTIONS = ("{}.", "look at {}!", "here is {}.", "this shows {}.", "we saw {}.", "there are {}.", "mostly {}.")
SUPERSAMPLE = 2  # things are drawn at this scale and averaged down for smooth edges


@dataclass(frozen=True)
class Scene:
    """One rendered pair."""

    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8, indices into CLASSES
    caption: str
    present: tuple[str, ...]  # the classes that cover at least 1% of the picture


def render(settings, split, index, shape=None, offset=0):
    """Render one scene. settings: schema.Rendered. shape: (height, width) in pixels; None: a square of settings.size.
    settings.seed + offset, split and index determine every byte; splits never share a picture."""
    height, width = shape or (settings.size, settings.size)
    rng = np.random.default_rng([settings.seed + offset, split, index])
    image, labels = _background(rng, height, width)
    for _ in range(rng.integers(1, settings.max_things + 1)):
        _place_thing(rng, image, labels)
    image *= np.float32(rng.uniform(0.85, 1.12))  # exposure
    image += (4 * _grain(rng, height, width) + np.float32(rng.uniform(-10, 10)))[..., None]  # sensor noise, black level
    area = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    present = tuple(name for name, share in zip(CLASSES, area, strict=True) if share >= 0.01)
    return Scene(image.clip(0, 255).astype(np.uint8), labels, _caption(rng, present, settings), present)


def _caption(rng, present, settings):
    """A caption that omits some of the present classes, but not all, and sometimes names an absent one."""
    kept = [name for name in present if rng.random() >= (settings.omit if name in THINGS else settings.omit_stuff)]
    kept = kept or [present[rng.integers(len(present))]]
    if rng.random() < settings.invent:
        absent = [name for name in CLASSES if name not in present]
        kept.append(absent[rng.integers(len(absent))])
    kept = [kept[i] for i in rng.permutation(len(kept))]
    *phrases, last = [f"the {name}" if name in STUFF else f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in kept]
    listing = f"{', '.join(phrases)} and {last}" if phrases else last
    return CAPTIONS[rng.integers(len(CAPTIONS))].format(listing)


def _noise(rng, height, width, cells_y, cells_x):
    """Smooth noise in -1..1 with about cells_y bumps down and cells_x across. (H, W) float32."""
    coarse = rng.uniform(-1, 1, (max(2, cells_y), max(2, cells_x))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def _grain(rng, height, width):
    """Uniform white noise with standard deviation 1, (H, W) float32."""
    uniform = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width)
    return (uniform.astype(np.float32) - 127.5) / 73.9


def _texture(rng, name, height, width):
    """A picture full of one kind of stuff, (H, W, 3) float32 in 0..255."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    scale = min(height, width) / 128  # patterns keep their size relative to the picture
    grain = _grain(rng, height, width)
    if name == "grass":
        tone = 14 * _noise(rng, height, width, height // 6, width // 2) + 6 * grain
    elif name == "water":
        phase = rng.uniform(0, 6.28) + 2 * _noise(rng, height, width, 6, 4)
        tone = 20 * np.sin(y / (rng.uniform(1.6, 2.4) * scale) + phase) + 3 * grain
    elif name == "sand":
        tone = 16 * grain * (rng.random((height, width)) < 0.35) + 8 * _noise(rng, height, width, 8, 8)
    elif name == "road":
        tone = 7 * grain + 4 * _noise(rng, height, width, 5, 5)
        dash_y = rng.uniform(0, 40 * scale)
        dash = (np.abs((y - dash_y) % (40 * scale) - 20 * scale) < 2 * scale) & (x % (28 * scale) < 15 * scale)
        tone = np.where(dash, 120, tone)
    elif name == "brick":
        rise, run = 9 * scale, 20 * scale
        row = np.floor(y / rise)
        offset = x + (row % 2) * run / 2 + rng.uniform(0, run)
        mortar = (y % rise < 1.6 * scale) | (offset % run < 1.6 * scale)
        shade = rng.uniform(-18, 18, (64, 64))[row.astype(int) % 64, np.floor(offset / run).astype(int) % 64]
        tone = np.where(mortar, 60, shade + 5 * grain)
    elif name == "sky":
        cloud = np.clip(_noise(rng, height, width, 4, 5) + 0.4 * _noise(rng, height, width, 12, 14) - 0.1, 0, 1)
        tone = 90 * cloud - 25 * (1 - y / height)
    elif name == "snow":
        tone = 9 * _noise(rng, height, width, 5, 5) + 3 * grain + 40 * (rng.random((height, width)) < 0.01)
    else:  # wood
        plank = np.floor(y / (14 * scale))
        groove = y % (14 * scale) < 1.4 * scale
        shade = rng.uniform(-16, 16, 64)[plank.astype(int) % 64]
        ring = 9 * np.sin(y / scale * 1.7 + 5 * _noise(rng, height, width, 4, 3))
        tone = np.where(groove, -55, shade + ring + 3 * grain)
    colour = (STUFF[name] + rng.normal(0, 7, 3)).astype(np.float32)
    return colour + tone[..., None].astype(np.float32)


def _background(rng, height, width):
    """Up to three kinds of stuff with wavy borders. Returns image (H, W, 3) float32 and labels (H, W) uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wall, *grounds = [WALLS[rng.integers(len(WALLS))], *rng.permutation(GROUNDS)[:2]]
    layers = [wall] + [g for g in grounds if g != wall][: rng.integers(1, 3)]
    if rng.random() < 0.25:  # seen from above: no wall, no sky
        layers = [str(name) for name in rng.permutation([s for s in STUFF if s != "sky"])[: rng.integers(1, 3)]]
    image = _texture(rng, layers[0], height, width)
    labels = np.full((height, width), CLASSES.index(layers[0]), np.uint8)
    edge = rng.uniform(0.25, 0.5)
    for name in layers[1:]:
        wave = rng.uniform(0.01, 0.05) * np.sin(x / width * rng.uniform(3, 9) + rng.uniform(0, 6.28))
        below = y / height > edge + wave + rng.uniform(-0.2, 0.2) * (x / width - 0.5)
        image[below] = _texture(rng, name, height, width)[below]
        labels[below] = CLASSES.index(name)
        edge += rng.uniform(0.2, 0.35)
    return image, labels


CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)), np.sin(np.linspace(0, 2 * np.pi, 25))], 1)


def _outline(shape, coordinates):
    """The polygon of a part, (n, 2)."""
    if shape == "poly":
        return np.array(coordinates, np.float64).reshape(-1, 2)
    if shape == "disc":
        x, y, radius = coordinates
        return CIRCLE * radius + (x, y)
    left, top, right, bottom = coordinates  # ellipse
    return CIRCLE * ((right - left) / 2, (bottom - top) / 2) + ((left + right) / 2, (top + bottom) / 2)


def _place_thing(rng, image, labels):
    """Draw one random thing into image and labels, in place."""
    height, width = labels.shape
    name = list(THINGS)[rng.integers(len(THINGS))]
    radius = rng.uniform(0.24, 0.44) * min(height, width)
    size = int(2 * radius)
    angle = np.deg2rad(rng.uniform(-20, 20))
    pose = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose = pose @ np.diag(rng.uniform(0.8, 1, 2) * (rng.choice([-1, 1]), 1))  # squeezed, maybe mirrored, then turned
    half = size * SUPERSAMPLE / 2
    canvas = Image.new("RGBA", (size * SUPERSAMPLE, size * SUPERSAMPLE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    jitter = {}  # one shift per colour of this thing, so that its two wheels match
    for shape, colour, coordinates in THINGS[name]:
        shift = jitter.setdefault(colour, rng.normal(0, 9, 3))
        fill = tuple(int(v) for v in np.clip(np.add(colour, shift), 0, 255)) + (255,)
        points = _outline(shape, coordinates) @ pose.T * (half / 1.15) + half
        draw.polygon([tuple(point) for point in points], fill=fill)
    patch = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    light = 1 + 0.12 * _noise(rng, size, size, 2, 2) + 0.025 * _grain(rng, size, size)
    # the centre stays inside the picture; the rest may be cut off by its border
    top, left = (int(rng.uniform(0.12, 0.88) * extent - radius) for extent in (height, width))
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + size, height), min(left + size, width)
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = patch[inside][..., 3:] / 255
    colour = patch[inside][..., :3] * light[inside][..., None]
    image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - alpha) + colour * alpha
    labels[y0:y1, x0:x1][alpha[..., 0] > 0.5] = CLASSES.index(name)


def render_shards(settings, folder):
    """Render the data set: train-*.tar, benchmark-*.tar, calibration-*.tar. Other shards in it are deleted. settings: schema.Scenes.

    Label maps things.png and scenes.png hold indices into the lists of classes things.txt, where 0 is the background, and scenes.txt. Only
    inspection and the supervised reference read those of train shards. Calibration pictures, as many as benchmark pictures and rendered
    alike, are for choices that need labels (calibration.py).
    """
    folder = Path(folder)
    for earlier in folder.glob("*.tar*"):
        earlier.unlink()
    shards = []
    for split, name in ((TRAIN, "train"), (BENCHMARK, "benchmark"), (CALIBRATION, "calibration")):
        count = settings.pairs if split == TRAIN else settings.pictures
        for first in range(0, count, PER_SHARD):
            shards.append((folder / f"{name}-{first // PER_SHARD:05d}.tar", split, range(first, min(first + PER_SHARD, count))))
    list(parallel(functools.partial(_render_shard, settings), shards, "render scenes"))
    (folder / "scenes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (folder / "things.txt").write_text("\n".join(("background", *THINGS)) + "\n", encoding="utf-8")


def _render_shard(settings, shard):
    """Write one shard. shard: (path, split, indices)."""
    path, split, indices = shard
    side, longer = settings.size, settings.size * 5 // 4
    shapes = [(side, side)] if split == TRAIN else [(side, longer), (longer, side)]  # non-square, so that windows slide

    def write(part):
        with wds.TarWriter(str(part), encoder=False, mtime=0) as tar:
            for index in indices:
                height, width = shapes[index % len(shapes)]
                scene, key = render(settings, split, index, (height, width)), f"{index:08d}"
                things = np.where(scene.labels < len(THINGS), scene.labels + 1, 0).astype(np.uint8)
                about = {"key": key, "caption": scene.caption, "present": scene.present, "height": height, "width": width}
                sample = {"__key__": key, "jpg": _file(scene.image, "JPEG", quality=92, subsampling=0), "txt": scene.caption.encode()}
                sample |= {"json": json.dumps(about).encode(), "scenes.png": _file(scene.labels, "PNG"), "things.png": _file(things, "PNG")}
                tar.write(sample)

    write_whole(path, write)


def _file(array, kind, **options):
    """The bytes of an image file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()
