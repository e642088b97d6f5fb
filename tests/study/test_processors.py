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


def write_study(folder, miou, **values):
    """A project of the runs of KS, all on one benchmark by one unit. miou: {run: by seed}. values: of mgca. Returns (results, Params)."""
    (folder / "results/runs").mkdir(parents=True)
    lines = {"seeds": 3, "trained": list(miou)[:3], "inferred": [], "untrained": ["maskclip"]}
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(default | {"ablations": lines, "mgca": default["mgca"] | values}))
    runs = params.load_runs(folder / "params.yaml")
    for name, run in runs.items():
        iou = {(None if run.kind == "untrained" else seed, "meta-point"): {"cat": float(v)} for seed, v in enumerate(miou[name])}
        (folder / run.result).write_text(json.dumps(make_result(run, {"street": iou}, {"train": 1.0})))
    return load_results(folder / run.result for run in runs.values()), params.load(path=folder / "params.yaml")


def test_verdicts_and_means_beside_those_of_another_processor(tmp_path, monkeypatch):
    results, p = write_study(tmp_path / "here", KS)
    write_study(tmp_path / "there", KS | {"default": (40.5, 41, 42.5), "mgca.k=0": (60, 61, 62)})
    monkeypatch.chdir(tmp_path / "here")
    processors.FILE.write_text("{}")
    assert processors.compare(results, p) is None  # there is none yet
    processors.write(tmp_path / "there", "an older one")
    verdicts, text = processors.compare(results, p)
    assert (verdicts["F5"], verdicts["F1"]) == (NOT, UNDECIDED)
    # means differ by 0.5 / 3, 30, 0 and 0
    assert "an older one." in text and "4 means over seeds differ by 0.08 points" in text and "30.00 at most (`mgca.k=0`, street" in text
    paper = yaml.safe_load((ROOT / "paper/tables.yaml").read_text())
    (_, said, table), *_ = report.sections(results, judge(results), paper, {}, (verdicts, text))
    assert text in said and dict(zip(table[""], table[report.OTHER], strict=True))["F5"] == "no: does not hold"
    assert set(table[report.OTHER][:4]) == {"yes"}
    other = p.model_copy(update={"mgca": p.mgca.model_copy(update={"tau": 0.1})})
    assert processors.compare(results, other) is None  # of another study
