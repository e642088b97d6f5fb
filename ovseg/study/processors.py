"""The study beside the same study on another processor, whose last digits differ: which verdicts are the same, and how far means differ.

    python -m ovseg.study.processors FOLDER "NAME"   write results/other_processor.json from a clone's results; NAME: of its processor
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

from .. import params
from .findings import judge
from .results import load_results

FILE = Path("results/other_processor.json")  # {} before there is another study


def digest(p):
    """Hex digest of the parameters that all runs share: two studies with the same can be compared. p: Params."""
    shared = p.model_dump_json(exclude={"device", "ablations", "figures"})
    return hashlib.sha256(shared.encode()).hexdigest()


def write(folder, processor):
    """Write FILE: mIoU in percent by seed of each run, benchmark and unit in the results of the study in `folder`."""
    path = Path(folder, "params.yaml")
    rows = load_results(Path(folder, run.result) for run in params.load_runs(path).values()).rows
    grouped = rows.groupby(["run", "benchmark", "unit"], sort=False)["miou"]
    miou = [[*key, [round(value, 4) for value in values]] for key, values in grouped]
    study = {"processor": processor, "parameters": digest(params.load(path=path)), "miou": miou}
    FILE.write_text(json.dumps(study) + "\n", encoding="utf-8")


def compare(results, p, path=FILE):
    """({finding: its verdict on the other processor}, a sentence on how far means over seeds differ), or None if the file is of other
    parameters. Only seeds that both have are read. results: results.Results. p: Params."""
    other = json.loads(Path(path).read_text(encoding="utf-8"))
    if other.get("parameters") != digest(p):
        return None
    there = {(run, benchmark, unit, seed): v for run, benchmark, unit, vs in other["miou"] for seed, v in enumerate(vs)}
    keys = zip(*(results.rows[name] for name in ("run", "benchmark", "unit")), results.rows["seed"].fillna(0), strict=True)
    both = results.rows.assign(there=[there.get(key, float("nan")) for key in keys]).dropna(subset="there")
    means = both.groupby(["run", "benchmark", "unit"])[["miou", "there"]].mean()
    apart = (means["miou"] - means["there"]).abs()
    text = f"The other processor: {other['processor']}. Between the two, {len(apart)} means over seeds differ by {apart.median():.2f} "
    text += "points in the median and by {3:.2f} at most (`{0}`, {1}, by {2}s).".format(*apart.idxmax(), apart.max())
    judged = judge(dataclasses.replace(results, rows=both.assign(miou=both["there"])))
    return {finding.code: finding.verdict for finding in judged}, text


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(*sys.argv[1:])
