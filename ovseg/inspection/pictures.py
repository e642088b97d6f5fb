"""Pictures to inspect: from a benchmark, from the training pairs, or from a file. Errors are one line and say what is allowed."""

import copy
import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..benchmarks import datasets
from ..data import preparation, shards
from ..data.images import center_crop, label_map, rgb


@dataclass(frozen=True)
class Picture:
    """image: PIL RGB. title: its name. caption: of a training pair, else "". truth: (H, W) indices into classes and 255, or None.

    classes: names of the truth's labels. side: pixels, the training size of a training pair; None for other pictures.
    """

    image: Image.Image
    title: str
    caption: str = ""
    truth: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    side: int | None = None


def of_benchmark(settings, name, index):
    """Picture `index` of a benchmark. settings: params' benchmarks. Shards are read from the beginning."""
    benchmark = datasets.open_benchmark(name, settings[name])
    _check(f"picture of {name}", index, len(benchmark))
    if benchmark.label_files:  # files: only this one is opened
        one = copy.copy(benchmark)
        one.keys, one.files, one.label_files = ([of_all[index]] for of_all in (benchmark.keys, benchmark.files, benchmark.label_files))
        _, image, truth = next(iter(one))
    else:
        _, image, truth = next(islice(benchmark, index, None))
    return Picture(image, f"{name}, picture {index}", "", truth, tuple(benchmark.classes))


def of_pair(p, index, folder="data/prepared"):
    """Training pair `index`, cropped as in training. p: Params. Its truth comes from a benchmark's label map in its sample, if any."""
    if not (Path(folder) / "pairs.txt").is_file():
        raise ValueError(f"{folder}/pairs.txt does not exist: `prepare` makes it; run it first")
    keys = preparation.load_keys(folder)
    _check("training pair", index, len(keys))
    shard, key = keys[index].split("/", 1)
    path = next(path for path in preparation.load_paths(folder) if Path(path).stem == shard)
    sample = next((sample for sample in shards.read_samples(path) if sample["__key__"] == key), None)
    if sample is None:
        raise ValueError(f"{keys[index]} is not in {path}: the shards have changed since `prepare` read them; run it again")
    image, caption = shards.decode(sample)
    side = p.clip.image_size
    truth, classes = None, ()
    for settings in p.benchmarks.values():  # the last match wins: in the rendered world, things and stuff
        if settings.label and settings.label in sample:
            with Image.open(io.BytesIO(sample[settings.label])) as labels:
                label_map(labels)  # raises if it holds no indices
                edge = min(labels.size)
                left, top = ((extent - edge) / 2 for extent in labels.size)
                truth = np.array(labels.resize((side, side), Image.Resampling.NEAREST, (left, top, left + edge, top + edge)))
            classes = tuple(Path(settings.classes).read_text(encoding="utf-8-sig").split("\n"))
            classes = tuple(name.strip() for name in classes if name.strip())
    return Picture(Image.fromarray(center_crop(image, side)), f"training pair {index}", caption, truth, classes, side)


def of_file(path):
    """A picture file in any format that Pillow reads. path: of the file, or (name, bytes)."""
    name, content = path if isinstance(path, tuple) else (str(path), None)
    try:
        with Image.open(io.BytesIO(content) if content is not None else Path(name).expanduser()) as image:
            return Picture(rgb(image), Path(name).name)
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: type the path of a picture") from None
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise ValueError(f"{name}: no picture that can be read ({error})") from None


def _check(what, index, count):
    if not 0 <= index < count:
        raise ValueError(f"{what} {index}: allowed are 0 to {count - 1}")
