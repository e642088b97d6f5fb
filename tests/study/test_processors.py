"""The study beside itself on another processor: from the results of two folders to verdicts side by side."""

import json

import yaml
from tiny import ROOT

from ovseg import params
from ovseg.study import processors, report
from ovseg.study.findings import NOT, UNDECIDED, judge
from ovseg.study.results import load_results
from ovseg.study.runs import make_result

KS = {"default": (40, 41, 42.5), "mgca.k=0": (30, 31, 32), "mgca.k=0.4": (20, 21, 22.5), "maskclip": (10,)}  # at which F5 holds


def write_study(folder, miou):
    """A project of the runs of KS, on one benchmark by one unit. miou: {run: by seed}. Returns (results, Params)."""
    (folder / "results/runs").mkdir(parents=True)
    lines = {"seeds": 3, "trained": list(KS)[:3], "inferred": [], "untrained": ["maskclip"], "retrieved": []}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((ROOT / "params.yaml").read_text()) | {"ablations": lines}))
    runs = params.load_runs(path)
    for name, run in runs.items():
        iou = {(None if run.kind == "untrained" else seed, "meta-point"): {"cat": float(v)} for seed, v in enumerate(miou[name])}
        (folder / run.result).write_text(json.dumps(make_result(run, {"street": iou}, {"train": 1.0})))
    return load_results(folder / run.result for run in runs.values()), params.load(path=path)


def test_verdicts_and_means_beside_those_of_another_processor(tmp_path, monkeypatch):
    results, p = write_study(tmp_path / "here", KS)
    write_study(tmp_path / "there", KS | {"default": (40.5, 41, 42.5), "mgca.k=0": (60, 61, 62)})
    monkeypatch.chdir(tmp_path / "here")
    processors.write(tmp_path / "there", "an older one")
    other = verdicts, text = processors.compare(results, p)
    assert (verdicts["F5"], verdicts["F1"]) == (NOT, UNDECIDED)
    for part in ("an older one.", "4 means over seeds differ by 0.08 points", "30.00 at most (`mgca.k=0`, street"):  # 0.5 / 3, 30, 0, 0
        assert part in text
    paper = yaml.safe_load((ROOT / "paper/tables.yaml").read_text())
    (_, said, table), *_ = report.sections(results, judge(results), paper, {}, other)
    assert text in said and list(table[report.OTHER]) == ["yes"] * 4 + ["no: does not hold", "yes"]
    assert processors.compare(results, p.model_copy(update={"train": p.train.model_copy(update={"lr": 0.1})})) is None  # another study
