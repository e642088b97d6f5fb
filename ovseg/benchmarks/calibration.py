"""The background's threshold, chosen on pictures that are not evaluated:
`python -m ovseg.benchmarks.calibration [--run mgca] [--pictures 200]`.

For each benchmark with background it prints the mIoU at each of THRESHOLDS on calibration pictures (a layout's training split,
what `calibration` names of other benchmarks), and the best threshold as the line for `evaluate.thresholds` in params.yaml. It
changes no file. mIoU is over the classes that truth or prediction holds: too few pictures lack classes.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from .. import params
from ..methods.decoder import Decoder
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import foreground
from . import datasets
from .evaluation import Encoded

THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def sweep(segmenter, encoded, pictures, thresholds=THRESHOLDS):
    """mIoU in percent at each threshold of the background, in one pass over the first `pictures` pictures: {threshold: mIoU}.

    encoded: evaluation.Encoded, of a benchmark with background.
    """
    ious = {threshold: datasets.MeanIoU(encoded.benchmark.classes) for threshold in thresholds}
    found = islice(encoded.pictures([segmenter]), pictures)
    for _, _, truth, (scores,) in tqdm(found, encoded.benchmark.name, min(pictures, len(encoded.benchmark)), mininterval=2):
        best, label = recognise(scores, segmenter.settings.scale)
        for threshold, iou in ious.items():
            iou.update(torch.where(best < threshold, 0, label), truth)
    return {threshold: datasets.mean(iou.compute()) for threshold, iou in ious.items()}


def recognise(scores, scale):
    """What segmenter.to_labels compares with a threshold, and the label where it is not below: (H, W) both, on the CPU.

    scores: segmenter.Scores, made in parts. Labels count from 1.
    """
    best, label = zip(*(foreground(scores.rows(part), scale) for part in scores.parts()), strict=True)
    return torch.cat(best).cpu(), torch.cat(label).cpu()


def open_all(settings):
    """The calibration pictures of params' benchmarks with background; one without is skipped with a printed line.

    Raises ValueError if there are none.
    """
    with_background = [benchmark.name for benchmark in datasets.open_all(settings) if benchmark.background]
    if not with_background:
        raise ValueError("no benchmark has a background: there is no threshold to choose")
    opened = []
    for name in with_background:
        try:
            opened.append(datasets.open_benchmark(name, settings[name], calibration=True))
        except (ValueError, FileNotFoundError) as missing:
            print(f"skipped: {missing}")
    if not opened:
        raise ValueError("no benchmark has calibration pictures")
    return opened


def load(run, p):
    """The segmenter of a trained run by the unit of params.segment, CLIP included. p: Params. Raises FileNotFoundError."""
    folder = Path("models") / run
    if not (folder / "decoder.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no decoder.safetensors: train it first, the headline by `dvc repro train`")
    from ..clip.frozen import FrozenCLIP  # takes seconds to import

    device = params.device(p.device)
    return Segmenter(FrozenCLIP.open(p.clip, device), Decoder.load(folder).to(device), p.segment)


def calibrate(run, pictures):
    """Print, for each benchmark with background, mIoU at each threshold, and last the best as lines of params.yaml."""
    p = params.load()
    opened, segmenter = open_all(p.benchmarks), load(run, p)
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
