"""A project of three benchmark pictures and training pairs, made in a folder."""

import numpy as np
from PIL import Image
from small import write_tar
from tiny import P, changed, picture, write_benchmark

from ovseg.schema import Benchmark

CLASSES = ["background", "cat", "sofa"]
TRUTH = np.repeat(np.array([0, 1, 2, 1], np.uint8), 12)[None].repeat(32, 0)  # (32, 48)


def write(folder):
    """Write the project into a folder. Returns its Params, with paths below it."""
    street = write_benchmark(folder / "street", [np.roll(TRUTH, i, 1) for i in range(3)], CLASSES)
    images = [Image.fromarray(picture(32, 48, seed=5 + i)) for i in range(3)]
    samples = {f"k{i}": {"png": images[i], "txt": b"caption %d" % i, "seg.png": Image.fromarray(TRUTH)} for i in range(3)}
    pairs = write_tar(folder / "pairs.tar", samples)
    (folder / "pairs.txt").write_text("pairs/k0\npairs/k1\npairs/k2\n")
    (folder / "shards.txt").write_text(f"{pairs}\n")
    shards = Benchmark(shards=pairs, label="seg.png", classes=str(street / "classes.txt"))
    clip = P.clip.model_copy(update={"image_size": 32})
    benchmarks = {"shards": shards, "street": Benchmark(folder=str(street))}
    return P.model_copy(update={"benchmarks": benchmarks, "clip": clip, "segment": changed(unit="meta-point")})
