"""One schema for the results of every run, written as JSON; tables.py reads them.

run         name, e.g. "mgca", "ablations/alpha/0.2-seed-0", "ablations/dense/maskclip"
seed        of its training; null if nothing was trained
seconds     {"train": ..., "evaluate": ...}, all that differs between two runs of one study on one machine
miou        {benchmark: {unit: percent}}: with those above what `dvc metrics show` prints
parameters  [{"name": "mgca.alpha", "value": 0.4}, ...]: clip, segment and the thresholds; of a trained run, mgca and train
classes     [{"benchmark", "unit", "class", "iou"}, ...], percent; null where a class is nowhere
pictures    [{"benchmark", "pictures"}, ...]
"""

import json
from pathlib import Path


def make(run, training, evaluated, parameters, seconds):
    """The result of a run.

    training: what `train` wrote into training.json, or None if nothing was trained. evaluated: {benchmark: of
    evaluation.evaluate}. parameters: of params.flatten, those of the evaluation. seconds: that the evaluation took.
    """
    training = training or {"seed": None, "seconds": 0.0, "parameters": []}
    return {
        "run": run,
        "seed": training["seed"],
        "seconds": {"train": training["seconds"], "evaluate": seconds},
        "miou": {name: {unit: found["miou"] for unit, found in by_unit.items()} for name, by_unit in evaluated.items()},
        "parameters": training["parameters"] + parameters,
        "classes": [
            {"benchmark": name, "unit": unit} | row
            for name, by_unit in evaluated.items()
            for unit, found in by_unit.items()
            for row in found["classes"]
        ],
        "pictures": [
            {"benchmark": name, "pictures": found["pictures"]} for name, by_unit in evaluated.items() for found in [*by_unit.values()][:1]
        ],
    }


def write(result, path):
    """Write a result as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
