"""`python -m ovseg.benchmarks.calibration [--run default]`: choose the background's threshold on images that are not evaluated."""

import os
import sys
from itertools import islice

import click
import torch
from tqdm import tqdm

from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import largest, probabilities
from . import datasets
from .evaluation import encode_classes, score_pictures
from .miou import MeanIoU, mean

THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def sweep(segmenter, benchmark, pictures=200):
    """{threshold: mIoU in percent} at each of THRESHOLDS on the first `pictures` images, in one pass. segmenter: with its CLIP."""
    ious = {threshold: MeanIoU(benchmark.classes) for threshold in THRESHOLDS}
    scored = islice(score_pictures([encode_classes(segmenter, benchmark)], [segmenter]), pictures)
    for _, (truth,), ((scores,),) in tqdm(scored, benchmark.name, min(pictures, len(benchmark)), mininterval=2):
        for part in scores.parts():  # the scores of a large image take gigabytes
            best, label = (values.cpu() for values in largest(probabilities(scores.rows(*part), segmenter.scale)))
            for threshold, iou in ious.items():
                iou.update(torch.where(best < threshold, 0, label + 1), truth[part])
    return {threshold: mean(iou.compute()) for threshold, iou in ious.items()}


def open_calibration(evaluated, settings):
    """The calibration images for a benchmark that is `evaluated`. settings: schema.Benchmark. Raises ValueError if none are configured, one
    of them is evaluated or the classes differ, and FileNotFoundError if files are missing."""
    name = evaluated.name
    if not (settings.layout or settings.calibration):
        raise ValueError(f"benchmark {name}: benchmarks.{name}.calibration names no pictures to choose a threshold on")
    other = datasets.open_benchmark(name, settings, "calibration")
    if other.classes != evaluated.classes:
        raise ValueError(f"benchmark {name}: {other.source} and {evaluated.source} hold different classes")
    seen = {os.stat(path)[1:3] for path in evaluated.files}  # inode and device: equal through links, too
    if both := [path for path in other.files if os.stat(path)[1:3] in seen]:
        raise ValueError(f"benchmark {name}: {both[0]} is evaluated: no threshold may be chosen on it")
    return other


def open_calibrations(settings):
    """Calibration images of the benchmarks with background, a list; prints a line for each that has none. settings: params' benchmarks."""
    opened = []
    for benchmark in datasets.open_benchmarks(settings):
        try:
            opened += [open_calibration(benchmark, settings[benchmark.name])] if benchmark.background else []
        except (ValueError, FileNotFoundError) as missing:
            print(f"skipped: {missing}")
    return opened


@click.command()
@click.option("--run", default="default", show_default=True, help="A trained and evaluated run, as it is named in models/.")
@click.option("--pictures", default=200, show_default=True, type=click.IntRange(min=1), help="Number of pictures of each benchmark.")
def main(run, pictures):
    """Print mIoU at each background threshold on calibration pictures, and the best thresholds as lines for params.yaml."""
    from .. import params

    try:
        params.enter_project()
        p = params.load()
        if not (opened := open_calibrations(p.benchmarks)):
            raise ValueError("no benchmark with a background has calibration pictures: there is no threshold to choose")
        segmenter = Segmenter.load(f"models/{run}", p.device)
        curves = {benchmark.name: sweep(segmenter, benchmark, pictures) for benchmark in opened}
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
    for name, curve in curves.items():
        print(f"{name}: mIoU of {run}", *(f"  {threshold:.2f}  {miou:.1f}" for threshold, miou in curve.items()), sep="\n")
    print("evaluate:\n  thresholds:", *(f"    {name}: {max(curve, key=curve.get)}" for name, curve in curves.items()), sep="\n")


if __name__ == "__main__":
    main()
