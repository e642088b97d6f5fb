"""A project of two benchmark pictures and two training pairs, made in a folder."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from tiny import P, picture

from ovseg.schema import Benchmark

CLASSES = ["background", "cat", "sofa"]
TRUTH = np.repeat(np.array([0, 1, 2, 1], np.uint8), 12)[None].repeat(32, 0)  # (32, 48)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def write(folder):
    """Write the project into a folder. Returns its Params, with paths below it."""
    street = Path(folder) / "street"
    for part in ("images", "labels"):
        (street / part).mkdir(parents=True)
    (street / "classes.txt").write_text("\n".join(CLASSES))
    for number in range(2):
        (street / f"images/p{number}.png").write_bytes(png(picture(32, 48, seed=number)))
        (street / f"labels/p{number}.png").write_bytes(png(np.roll(TRUTH, number, 1)))
    pairs = Path(folder) / "pairs.tar"
    with tarfile.open(pairs, "w") as tar:
        for number in range(2):
            files = {"png": png(picture(32, 48, seed=5 + number)), "txt": f"caption {number}".encode(), "seg.png": png(TRUTH)}
            for extension, content in files.items():
                member = tarfile.TarInfo(f"k{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (Path(folder) / "pairs.txt").write_text("pairs/k0\npairs/k1\n")
    (Path(folder) / "shards.txt").write_text(f"{pairs}\n")
    benchmarks = {
        "street": Benchmark(folder=str(street)),
        "shards": Benchmark(shards=str(pairs), label="seg.png", classes=str(street / "classes.txt")),
    }
    clip = P.clip.model_copy(update={"image_size": 32})
    return P.model_copy(update={"benchmarks": benchmarks, "clip": clip})
