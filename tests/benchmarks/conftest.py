"""Benchmarks of random pictures and label maps, as params describe them, and their cached features."""

import numpy as np
import pytest
import webdataset as wds
from tiny import picture, write_benchmark

from ovseg.benchmarks import datasets, encoding, evaluation
from ovseg.schema import Benchmark


@pytest.fixture
def mine(tmp_path):
    """A folder benchmark with background, of three pictures of different sizes: 1, 3 and 6 windows or so."""
    maps = [np.random.default_rng(index).integers(0, 3, size) for index, size in enumerate([(32, 32), (40, 70), (130, 41)])]
    return {"mine": Benchmark(folder=str(write_benchmark(tmp_path / "mine", maps, ["background", "cat", "sofa"])))}


@pytest.fixture
def sharing(tmp_path):
    """Three benchmarks in shards: things and all are of the same pictures, apart, between them, of others; all has no background. In
    things and apart a class has two names."""
    for name, seeds in (("same", (0, 1)), ("other", (2, 3))):
        with wds.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for seed in seeds:
                labels = np.random.default_rng(seed).integers(0, 3, (40, 50 + seed), dtype=np.uint8)
                tar.write({"__key__": f"p{seed}", "png": picture(40, 50 + seed, seed), "things.png": labels, "all.png": 3 - labels})
    (tmp_path / "things.txt").write_text("background\ncat; kitten\nsofa\n")
    (tmp_path / "all.txt").write_text("cat\nsofa\ntall tree\nsky\n")
    same, other, things, all_ = (str(tmp_path / name) for name in ("same.tar", "other.tar", "things.txt", "all.txt"))
    return {
        "things": Benchmark(shards=same, label="things.png", classes=things),
        "apart": Benchmark(shards=other, label="things.png", classes=things),
        "all": Benchmark(shards=same, label="all.png", classes=all_),
    }


@pytest.fixture
def suite_of(clip, tmp_path):
    """Encodes the benchmarks of Params into tmp_path/cache, and opens the suite."""

    def of(p):
        modes = [p.clip.dense] if p.clip.cache_images else []
        encoding.encode_benchmarks(clip, datasets.open_benchmarks(p.benchmarks), p.segment, tmp_path / "cache", modes)
        return evaluation.open_suite(p, tmp_path / "cache")

    return of
