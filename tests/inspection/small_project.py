"""A project of three benchmark pictures and training pairs, made in a folder."""

import io

import numpy as np
import webdataset
from PIL import Image
from tiny import P, changed, picture

from ovseg.schema import Benchmark

CLASSES = ["background", "cat", "sofa"]
TRUTH = np.repeat(np.array([0, 1, 2, 1], np.uint8), 12)[None].repeat(32, 0)  # (32, 48)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def write(folder):
    """Write the project into a folder. Returns its Params, with paths below it."""
    street, pairs = folder / "street", str(folder / "pairs.tar")
    for part in ("images", "labels"):
        (street / part).mkdir(parents=True)
    (street / "classes.txt").write_text("\n".join(CLASSES))
    with webdataset.TarWriter(pairs) as tar:
        for i in range(3):
            (street / f"images/p{i}.png").write_bytes(png(picture(32, 48, seed=i)))
            (street / f"labels/p{i}.png").write_bytes(png(np.roll(TRUTH, i, 1)))
            tar.write({"__key__": f"k{i}", "png": png(picture(32, 48, seed=5 + i)), "txt": f"caption {i}", "seg.png": png(TRUTH)})
    (folder / "pairs.txt").write_text("pairs/k0\npairs/k1\npairs/k2\n")
    (folder / "shards.txt").write_text(f"{pairs}\n")
    shards = Benchmark(shards=pairs, label="seg.png", classes=str(street / "classes.txt"))
    clip = P.clip.model_copy(update={"image_size": 32})
    benchmarks = {"shards": shards, "street": Benchmark(folder=str(street))}
    return P.model_copy(update={"benchmarks": benchmarks, "clip": clip, "segment": changed(unit="meta-point")})
