"""Benchmarks of random pictures and label maps, as params describe them, and their cached features."""

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tiny import P, changed, picture

from ovseg.benchmarks import datasets, evaluation
from ovseg.schema import Benchmark
from ovseg.segmentation.windows import cut_windows


@pytest.fixture
def mine(tmp_path):
    """A folder benchmark with background, of three pictures of different sizes: 1, 3 and 6 windows or so."""
    folder = tmp_path / "mine"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\ncat\nsofa\n")
    for index, (height, width) in enumerate([(32, 32), (40, 70), (130, 41)]):
        Image.fromarray(picture(height, width, index)).save(folder / "images" / f"{index}.png")
        labels = np.random.default_rng(index).integers(0, 3, (height, width), dtype=np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    return {"mine": Benchmark(folder=str(folder))}


@pytest.fixture
def sharing(tmp_path):
    """Three benchmarks in shards: things and all are of the same pictures, apart, between them, of others; all has no background."""
    for name, seeds in (("same", (0, 1)), ("other", (2, 3))):
        with wds.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for seed in seeds:
                labels = np.random.default_rng(seed).integers(0, 3, (40, 50 + seed), dtype=np.uint8)
                tar.write({"__key__": f"p{seed}", "png": picture(40, 50 + seed, seed), "things.png": labels, "all.png": 3 - labels})
    (tmp_path / "things.txt").write_text("background\ncat\nsofa\n")
    (tmp_path / "all.txt").write_text("cat\nsofa\ntall tree\nsky\n")
    same, other = (str(tmp_path / f"{name}.tar") for name in ("same", "other"))
    return {
        "things": Benchmark(shards=same, label="things.png", classes=str(tmp_path / "things.txt")),
        "apart": Benchmark(shards=other, label="things.png", classes=str(tmp_path / "things.txt")),
        "all": Benchmark(shards=same, label="all.png", classes=str(tmp_path / "all.txt")),
    }


@pytest.fixture
def study():
    """Params of some benchmarks for the tiny CLIP: study(benchmarks, mode, thresholds, cached, values of `segment`)."""

    def of(benchmarks, mode="maskclip", thresholds=None, cached=True, **segment):
        reads = P.clip.model_copy(update={"dense": mode, "cache_images": cached})
        thresholds = P.evaluate.model_copy(update={"thresholds": thresholds or {}})
        return P.model_copy(update={"benchmarks": benchmarks, "clip": reads, "segment": changed(**segment), "evaluate": thresholds})

    return of


@pytest.fixture
def suite_of(clip, tmp_path):
    """Writes what `encode` caches of the benchmarks of Params into tmp_path/cache, and opens the suite."""

    def of(p):
        seen = set()
        for benchmark in datasets.open_benchmarks(p.benchmarks):
            folder = tmp_path / "cache" / benchmark.name
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "classes.npy", clip.embed_classes(benchmark.named, p.segment.templates).numpy())
            if p.clip.cache_images and benchmark.source not in seen:  # over the same pictures, the first benchmark has their windows
                windows = np.concatenate([cut_windows(image, p.segment)[0] for _, image, _ in benchmark])
                np.save(folder / f"{p.clip.dense}.npy", clip.encode_dense(windows, p.clip.dense).numpy().astype(np.float16))
            seen.add(benchmark.source)
        return evaluation.open_suite(p, tmp_path / "cache")

    return of
