"""A run's units, its result, and its numbers beside those of other runs."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import RUNS
from tiny import save

from ovseg.benchmarks import evaluation
from ovseg.segmentation.segmenter import Segmenter
from ovseg.study import runs
from ovseg.training.decoder import Decoder

DEFAULT, K, POINTS = RUNS["default"], RUNS["mgca.k=0.2"], RUNS["segment.meta_points=9"]


def test_a_result_averages_over_seeds_and_keeps_each_and_names_thresholds_of_benchmarks_with_background(monkeypatch):
    monkeypatch.setitem(K.params.evaluate.thresholds, "things", 0.4)
    iou = {"street": {(0, "pixel"): {"cat": 10.0, "sea": None}, (1, "pixel"): {"cat": 20.0, "sea": 40.0}}}
    iou |= {name: dict.fromkeys(iou["street"], {"background": 1.0}) for name in ("things", "park")}
    result = runs.make_result(K, iou, {"train": 3.0, "evaluate": 1.0}, 7)
    assert result["miou"]["street"] == {"pixel": 20.0}  # of 10 and (20 + 40) / 2
    assert [seed["miou"]["street"]["pixel"] for seed in result["seeds"]] == [10, 30]
    assert result["seeds"][1]["iou"]["street"]["pixel"] == {"cat": 20.0, "sea": 40.0}
    assert (result["run"], result["kind"], result["weights"]) == ("mgca.k=0.2", "trained", 7)
    assert result["thresholds"] == {"things": 0.4, "park": K.params.segment.threshold}
    assert result["classes"][:1] == [["street", "a420285883291977360ae3a0ca0100524031d2e46f8ce2ce38c2f29bce3af252"]]  # cat, sea
    assert result["versions"][0] == ["python", sys.version.split()[0]] and dict(result["versions"])["numpy"] == np.__version__
    assert result["changes"] == [("mgca.k", 0.2)] and dict(result["parameters"])["mgca.k"] == 0.2
    assert runs.by_class(result)["street", "pixel"].dropna().to_dict() == {"cat": 15, "sea": 40}


def test_a_result_is_shown_beside_others_of_the_same_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/runs").mkdir(parents=True)
    ours = runs.make_result(K, {"street": {(seed, "pixel"): {"cat": 50.0 + seed} for seed in (0, 1)}}, {})
    other = runs.make_result(DEFAULT, {"street": {(0, "meta-point"): {"cat": 40.0}}}, {})
    others = {"default run": DEFAULT, "baseline": RUNS["maskclip"]}
    DEFAULT.result.write_text(json.dumps(other))
    row = runs.beside(ours, others).loc["street", "pixel"]
    assert row["this run"] == "50.5 ± 0.7 (2)" and row["default run"] == "40.0, by meta-point"
    assert row["this - default run"] == "+10.5" and row["baseline"] == row["this - baseline"] == "–"
    DEFAULT.result.write_text(json.dumps(other | {"parameters": []}))
    assert runs.beside(ours, others).loc["street", "pixel"]["default run"] == "–"


def test_finished_benchmarks_are_kept_until_something_they_depend_on_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(K.model / "seeds/0/decoder.safetensors", b"weights")
    evaluated, kill, segmenters = [], [], {0: Segmenter(None, Decoder(16), K.params.segment)}

    def evaluate(variants, suite):
        """A stand-in that notes what is evaluated, and is killed at the benchmarks in `kill`."""
        names = [encoded.benchmark.name for encoded in suite]
        if names == kill:
            raise KeyboardInterrupt
        evaluated.extend(names)
        return {name: {variant: {"cat": 100 / 3, name: None} for variant in variants} for name in names}

    def run(*names, run=K, **fields):
        evaluated.clear()
        benchmarks = [SimpleNamespace(name=name, source=name[0], background=True, classes=()) for name in names]
        suite = [evaluation.Encoded(benchmark, None, **fields) for benchmark in benchmarks]
        iou, seconds = runs.evaluate_suite(run, (suite, segmenters), torch.device("cpu"))
        assert iou == {name: {(0, unit): {"cat": 100 / 3, name: None} for unit in ("meta-point", "pixel")} for name in names}
        assert list(iou) == list(names) and seconds > 0
        return evaluated.copy()

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert run("voc", "street") == ["voc", "street"] and run("voc", "street") == []
    assert run("ade", "voc", "voc20", "street") == ["ade", "voc20"]  # voc20 is over voc's pictures
    kill.append("street")
    with pytest.raises(KeyboardInterrupt):
        run("voc", "street", made_with="2")
    kill.clear()
    assert run("voc", "street", made_with="2") == ["street"] and run("voc", threshold=0.3) == ["voc"]
    other = replace(K, params=K.params.model_copy(update={"segment": K.params.segment.model_copy(update={"scale": 3.0})}))
    assert run("ade", run=other) == ["ade"] == run("ade")
    save(K.model / "seeds/0/decoder.safetensors", b"others")
    assert run("ade") == ["ade"] and run("ade") == []
    monkeypatch.setattr(runs, "syntax", lambda file: "other code")
    assert run("ade") == ["ade"]


def test_the_heading_says_what_a_run_changes_and_its_units():
    default, trained, inferred, untrained = (runs.heading(run, DEFAULT) for run in (DEFAULT, K, POINTS, RUNS["sclip"]))
    assert default.startswith("**Run `default`**: `params.yaml` as it is; seeds 0 to 5. Units: meta-point, pixel, group (the first")
    assert "changes `mgca.k` from 0.06 to 0.2; seeds 0 to 2. Units: meta-point, pixel (" in trained
    assert "changes `segment.meta_points` from 36 to 9; the default run's decoders. Units: meta-point (" in inferred
    assert "as SCLIP reads them, without training. Units: meta-point, pixel, group (" in untrained
