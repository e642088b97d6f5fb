"""`python -m ovseg.benchmarks.calibration [--run mgca] [--pictures 200]`: the background's threshold, on images not evaluated.

For each benchmark with background, this prints mIoU at each of THRESHOLDS on the calibration images (open_calibration). It ends with
the best thresholds as lines for `evaluate.thresholds` in params.yaml, which it does not edit. mIoU is over the classes
present in the truth or the prediction: a small set of images may lack some.
"""

import argparse
import os
import sys
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from .. import params
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import foreground
from . import datasets
from .evaluation import Encoded, score_pictures
from .miou import MeanIoU, mean

THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def sweep(segmenter, encoded, pictures, thresholds=THRESHOLDS):
    """mIoU in percent at each background threshold on the first `pictures` images, computed in one pass: {threshold: mIoU}.

    encoded: evaluation.Encoded, of a benchmark with background.
    """
    ious = {threshold: MeanIoU(encoded.benchmark.classes) for threshold in thresholds}
    scored = islice(score_pictures([encoded], [segmenter]), pictures)
    for _, (truth,), ((scores,),) in tqdm(scored, encoded.benchmark.name, min(pictures, len(encoded.benchmark)), mininterval=2):
        for part in scores.parts():  # a few rows at a time: the scores of a large image take gigabytes
            best, label = (found.cpu() for found in foreground(scores.rows(part), segmenter.scale))
            for threshold, iou in ious.items():
                iou.update(torch.where(best < threshold, 0, label), truth[part])
    return {threshold: mean(iou.compute()) for threshold, iou in ious.items()}


def open_calibration(evaluated, settings):
    """Open the calibration images for the benchmark `evaluated`; none of them is in that benchmark. settings: schema.Benchmark.

    Raises ValueError if none are configured, if one of them is evaluated or if the classes differ, FileNotFoundError if files are missing.
    """
    name = evaluated.name
    if not (settings.layout or settings.calibration):
        raise ValueError(f"benchmark {name}: benchmarks.{name}.calibration names no pictures to choose a threshold on")
    other = datasets.open_benchmark(name, settings, "calibration")
    if other.classes != evaluated.classes:
        raise ValueError(f"benchmark {name}: {other.source} and {evaluated.source} hold different classes")
    seen = {(found.st_dev, found.st_ino) for found in map(os.stat, evaluated.files)}  # equal through links too
    for path, found in zip(other.files, map(os.stat, other.files), strict=True):
        if (found.st_dev, found.st_ino) in seen:
            raise ValueError(f"benchmark {name}: {path} is evaluated: no threshold may be chosen on it")
    return other


def open_calibrations(settings):
    """Open calibration images of the benchmarks with background; prints a line for each it skips. Raises ValueError if none is left."""
    with_background = [benchmark for benchmark in datasets.open_benchmarks(settings) if benchmark.background]
    if not with_background:
        raise ValueError("no benchmark has a background: there is no threshold to choose")
    opened = []
    for benchmark in with_background:
        try:
            opened.append(open_calibration(benchmark, settings[benchmark.name]))
        except (ValueError, FileNotFoundError) as missing:
            print(f"skipped: {missing}")
    if not opened:
        raise ValueError("no benchmark has calibration pictures")
    return opened


def load_segmenter(run, p):
    """Load the Segmenter of a run's first training, with its CLIP. p: the run's Params. Raises FileNotFoundError."""
    folder = Path("models") / run / "seeds/0"
    if not (folder / "decoder.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no decoder.safetensors: train it first, the default run by `dvc repro train`")
    from ..clip.frozen import FrozenCLIP  # takes seconds to import

    device = params.device(p.device)
    return Segmenter.of_training(folder, FrozenCLIP.open(p.clip, device), p.segment, device)


def calibrate(run, pictures):
    """Print mIoU at each threshold for each benchmark with background, then the best thresholds as lines for params.yaml."""
    p = params.load(params.parse_change(run.removeprefix("trained/")) if run.startswith("trained/") else None)
    opened, segmenter = open_calibrations(p.benchmarks), load_segmenter(run, p)
    best = {}
    for benchmark in opened:
        classes = segmenter.clip.embed_classes(benchmark.named, p.segment.templates)
        found = sweep(segmenter, Encoded(benchmark, classes, None), pictures)
        best[benchmark.name] = max(found, key=found.get)
        print(f"{benchmark.name}: {run} by {p.segment.unit}s, {min(pictures, len(benchmark))} pictures of {benchmark.source}")
        print("threshold  mIoU")
        for threshold, miou in found.items():
            print(f"{threshold:9.2f}  {miou:4.1f}" + "  best" * (threshold == best[benchmark.name]))
    print("evaluate:\n  thresholds:", *(f"    {name}: {threshold}" for name, threshold in best.items()), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="mgca", help="a trained run, as it is named in models/")
    parser.add_argument("--pictures", type=int, default=200, help="the first so many of each benchmark's calibration pictures")
    chosen = parser.parse_args()
    try:
        if chosen.pictures < 1:
            raise ValueError(f"--pictures = {chosen.pictures}: at least 1")
        params.enter_project()
        calibrate(chosen.run, chosen.pictures)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
