"""The paper's preset from end to end, shrunk in sizes and to one process: python tests/study/paper_preset.py FOLDER [--pairs TAR ...]

Makes a copy of the project in FOLDER with presets/paper.yaml as its params.yaml, a ViT-B/16 with random weights as its CLIP,
a few image-text pairs (yours, or rendered ones) as img2dataset leaves them, and a picture for each of the eight benchmarks in
MMSegmentation's layouts, and runs `dvc repro`. Numbers mean nothing; that every stage of the study of the paper runs does.
Half an hour on two cores, so that it is no part of the tests.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file
from test_pipeline import ROOT, copy_project

from ovseg.benchmarks import layouts
from ovseg.data import shards
from ovseg.world import scenes

PAIRS, SIZE = 32, (320, 240)  # of the study; of benchmark pictures: a little wider than high, so that there are two windows


def pairs(paths):
    """The first pairs of some shards, or rendered ones: (jpg bytes, caption)."""
    if paths:
        for path in paths:
            for sample in shards.read_samples(path):
                if "jpg" in sample and "txt" in sample:
                    yield sample["jpg"], sample["txt"].decode()
        return
    for index in range(PAIRS):
        scene = scenes.render(0, scenes.TRAIN, index)
        yield jpg(scene.image), scene.caption


def jpg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG")
    return file.getvalue()


def write_pairs(folder, found):
    """Two shards with the files that img2dataset leaves beside them."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for index in range(PAIRS // 2):
                image, text = next(found)
                key = f"{shard:05}{index:04}"
                for extension, data in (("jpg", image), ("txt", text.encode()), ("json", json.dumps({"key": key}).encode())):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        stats = {"count": PAIRS // 2, "successes": PAIRS // 2, "failed_to_download": 0, "failed_to_resize": 0}
        (folder / f"{shard:05}_stats.json").write_text(json.dumps(stats))


def write_benchmark(folder, layout, image):
    """A picture in each split of a layout, with a label map that holds some classes, what is ignored, and nothing else."""
    classes = len((layouts.CLASSES / f"{layout.classes}.txt").read_text().splitlines())
    labels = np.indices(SIZE[::-1]).sum(0) // 16 % classes
    labels[:8] = 255
    for split in (layout.evaluated, layout.calibration):
        if layout.listing:
            path = folder / layout.listing.format(split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{split}_picture\n")
        for part, picture in ((layout.images, image), (layout.labels, Image.fromarray(labels.astype(np.uint8)))):
            path = folder / part.format(split=split, key=f"{split}_picture" if layout.listing else "town/picture")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def shrink(p):
    """The preset with a random CLIP, few steps and small batches; every stage and every ablation stays."""
    p["clip"] |= {"pretrained": "data/random.safetensors", "batch": 8}
    p["train"] |= {"epochs": 1, "warmup_epochs": 0.5, "batch": 16, "workers": 1, "processes": 1}
    p["figures"] |= {"quantiles": [0.5], "pairs": [0, 1]}
    return p


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--pairs", nargs="*", type=Path, help="webdataset tars with at least 32 pairs (jpg, txt)")
    options = parser.parse_args()
    found = list(itertools.islice(pairs(options.pairs), PAIRS))
    if len(found) < PAIRS:
        sys.exit(f"--pairs: {len(found)} pairs of jpg and txt; {PAIRS} are needed")
    options.folder.mkdir(parents=True)
    copy_project(options.folder)
    yaml = YAML()
    preset = shrink(yaml.load((ROOT / "presets/paper.yaml").read_text()))
    with open(options.folder / "params.yaml", "w") as file:
        yaml.dump(preset, file)
    write_pairs(options.folder / preset["data"]["shards"], iter(found))
    image = Image.open(io.BytesIO(found[0][0])).convert("RGB").resize(SIZE)
    for settings in preset["benchmarks"].values():
        write_benchmark(options.folder / settings["folder"], layouts.LAYOUTS[settings["layout"]], image)
    torch.manual_seed(0)
    model = open_clip.create_model(preset["clip"]["model"])
    save_file(model.state_dict(), options.folder / preset["clip"]["pretrained"])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["dvc", "repro"], cwd=options.folder, env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}, check=True)


if __name__ == "__main__":
    main()
