"""mIoU as a function of the background threshold, on calibration pictures, which are never evaluated."""

import pandas as pd

from ..benchmarks import calibration
from ..benchmarks.evaluation import Encoded


def curve(run, p, pictures):
    """mIoU at each of calibration.THRESHOLDS on the first `pictures` calibration pictures, for the first seed and the run's own unit.

    run: runs.Run, trained. p: its Params. Returns a DataFrame with columns benchmark, threshold, mIoU (percent). If no
    benchmark has a background and calibration pictures, it is empty and a line says why.
    """
    rows = []
    try:
        opened = calibration.open_calibrations(p.benchmarks)
    except ValueError as none:
        print(none)
        opened = []
    segmenter = calibration.load_segmenter(run.name, p) if opened else None
    for benchmark in opened:
        classes = segmenter.clip.embed_classes(benchmark.named, p.segment.templates)
        found = calibration.sweep(segmenter, Encoded(benchmark, classes, None), pictures)
        rows += [(benchmark.name, threshold, miou) for threshold, miou in found.items()]
    return pd.DataFrame(rows, columns=["benchmark", "threshold", "mIoU"])
