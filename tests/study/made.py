"""The study's runs, and results made by hand: the rows of Results without any file."""

import pandas as pd
from tiny import ROOT

from ovseg import params
from ovseg.study.results import DEFAULT, GROUPS, Results
from ovseg.study.runs import parameters

RUNS = params.load_runs(ROOT / "params.yaml")
WITH, WITHOUT = GROUPS
ALL = "object+region+pixel"


def run(changes, meta_point=None, pixel=None, group=WITH):
    """A run's rows: (changes, rows). changes: {} for the default run. meta_point, pixel: mIoU at seeds 0, 1, ..."""
    kind = "untrained" if "clip.dense" in changes else "trained"
    name = changes.get("clip.dense") or ",".join(f"{key}={value}" for key, value in changes.items()) or DEFAULT
    rows = []
    for unit, values in {"meta-point": meta_point, "pixel": pixel}.items():
        for seed, miou in enumerate(values or ()):
            row = {"run": name, "kind": kind, "seed": None if kind == "untrained" else seed, "benchmark": f"b-{group}", "group": group}
            rows.append(row | {"unit": unit, "own": unit == "meta-point", "miou": miou})
    return name, changes, rows


def baseline(miou, group=WITH):
    return run({"clip.dense": "maskclip"}, pixel=[miou], group=group)


def results(*runs):
    frame = pd.DataFrame([row for _, _, rows in runs for row in rows]).astype({"seed": float, "miou": float})
    return Results(frame, {name: changes for name, changes, _ in runs}, dict(map(tuple, parameters(RUNS[DEFAULT].params))))
