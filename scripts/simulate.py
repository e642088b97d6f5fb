"""Simulate the paper's setting on one machine: `python scripts/simulate.py FOLDER [--pairs 100000]`. docs/scale.md has figures made by it.

Writes pairs in img2dataset's layout (JPEGs of 256 pixels on the shorter side), prints the rates of `prepare` and of streaming, and makes
FOLDER/project, where `python scripts/repro.py` runs presets/paper.yaml from end to end on 256 of the pairs, in two processes: a ViT-B/16
with random weights, one benchmark in VOC's layout. Linux only.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from ovseg.data import preparation, shards
from ovseg.training.batches import StreamedImages
from ovseg.world import scenes

SIZES = ((341, 256), (256, 341), (384, 256), (256, 256))  # width, height
SHRUNK = {
    "device": "cpu", "data": {"shards": "../few"}, "benchmarks": {"voc": {"layout": "voc", "folder": "../VOC2012"}},
    "clip": {"pretrained": "../clip.pt", "precision": "float32", "batch": 16},
    "train": {"batch": 64, "epochs": 2, "warmup_epochs": 1, "precision": "float32", "workers": 2, "processes": 2, "threads": 1},
    "segment": {"precision": "float32"}, "evaluate": {"thresholds": {}},
    "ablations": {"trained": ["default"], "inferred": [], "untrained": ["maskclip"]},
}  # fmt: skip


def photograph(rng, width, height):
    """An image whose JPEG has the size of a photograph's, about 34 KB."""
    smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 7, (height, width, 3))).clip(0, 255).astype(np.uint8))


def jpeg(image):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def write_shards(folder, count, per_shard, rng):
    """Pairs 000000000.jpg, .txt, .json, and so on, in shards 00000.tar, ... A few images are repeated; most captions are distinct."""
    files = [jpeg(photograph(rng, *SIZES[i % len(SIZES)])) for i in range(64)]
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, count, per_shard)):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for index in range(first, min(count, first + per_shard)):
                things = " and a ".join(rng.choice(scenes.CLASSES, rng.integers(1, 5)))
                caption = f"a {things} in {rng.choice(scenes.CLASSES)} number {rng.integers(count)}"
                about = json.dumps({"caption": caption, "key": f"{index:09}", "status": "success"})
                for name, content in (("jpg", files[index % 64]), ("txt", caption.encode()), ("json", about.encode())):
                    member = tarfile.TarInfo(f"{index:09}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def resident(process):
    """MiB of a process' memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))[1]) >> 10


def measure(paths):
    """Print the rates of `prepare` and of a stream, and what they take."""
    started = time.perf_counter()
    keys, bank, _ = preparation.scan(paths, 0.1, ["a photo of a {}."])
    seconds, cores = time.perf_counter() - started, len(os.sched_getaffinity(0))
    print(f"prepare: {len(keys):,} pairs, {len(bank.texts):,} texts, {len(keys) / seconds:,.0f} pairs a second on {cores} cores")
    for workers in range(1, cores + 1):
        epoch = StreamedImages(SimpleNamespace(encode_dense=len), paths, keys, 224, workers).epoch(0, 0, 256, 0, torch.device("cpu"))
        next(epoch)  # the workers have started, and their buffers are full
        started = time.perf_counter()
        images = sum(size for _, size, _ in itertools.islice(epoch, max(1, min(40, len(keys) // 256 - 2))))
        rate, files = images / (time.perf_counter() - started), len(os.listdir("/proc/self/fd"))
        held = max(resident(child.pid) for child in multiprocessing.active_children())
        print(f"stream, {workers} workers: {rate:,.0f} images a second, {files} open files, {held} MiB a worker")
        epoch.close()


def make_project(folder, rng):
    """FOLDER/project, and the checkpoint and the benchmark that its params.yaml names."""
    import open_clip  # takes seconds

    torch.save(open_clip.create_model("ViT-B-16-quickgelu").state_dict(), folder / "clip.pt")
    voc = folder / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("".join(f"{i}\n" for i in range(4)))
    for index in range(4):
        photograph(rng, 500, 375).save(voc / f"JPEGImages/{index}.jpg")
        labels = np.kron(rng.integers(0, 21, (3, 4), np.uint8), np.ones((125, 125), np.uint8))
        Image.fromarray(labels).save(voc / f"SegmentationClass/{index}.png")
    root, project = Path(__file__).parents[1], folder / "project"
    for name in ("notebooks", "ovseg", "paper", "scripts", "models/clip"):
        shutil.copytree(root / name, project / name)
    (project / "results").mkdir()
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "results/pretrain.json", "results/other_processor.json"):
        shutil.copy(root / name, project / name)
    (folder / "shrunk.yaml").write_text(json.dumps(SHRUNK))  # which is YAML, too
    commands = ["dvc init --quiet --no-scm", "dvc commit --quiet --force pretrain"]  # models/clip is made
    commands += [f"{sys.executable} -m ovseg.params {preset}" for preset in (root / "presets/paper.yaml", "../shrunk.yaml")]
    for command in commands:
        subprocess.run(command.split(), cwd=project, env=os.environ | {"PYTHONPATH": "."}, check=True)


def main():
    parser = argparse.ArgumentParser(description="Synthetic pairs, the rates of prepare and of streaming, and a shrunk study.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    options, rng = parser.parse_args(), np.random.default_rng(0)
    if options.folder.exists():
        sys.exit(f"{options.folder} exists: name a new folder")
    write_shards(options.folder / "pairs", options.pairs, 10_000, rng)
    write_shards(options.folder / "few", 256, 64, rng)
    measure(shards.expand(str(options.folder / "pairs")))
    make_project(options.folder, rng)


if __name__ == "__main__":
    main()
