"""Which runs a study holds, and where each keeps its files."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ovseg import params
from ovseg.study.runs import Run, all_runs, make_result, units_of, write_result

P = params.load(path=Path(__file__).parents[2] / "params.yaml")


def test_a_study_is_the_default_run_and_a_run_for_each_line():
    lists = P.ablations.model_copy(update={"trained": ["mgca.k=0"], "inferred": ["segment.unit=group"], "untrained": ["clip"]})
    found = all_runs(lists)
    assert found == [Run(), Run("untrained", "clip"), Run("trained", "mgca.k=0"), Run("inferred", "segment.unit=group")]
    assert len({run.result for run in found}) == 4


@pytest.mark.parametrize(
    "run, model, result, changes",
    [
        (Run(), "models/mgca", "mgca", {}),
        (Run("trained", "mgca.k=0"), "models/trained/mgca.k=0", "trained/mgca.k=0", {"mgca.k": 0}),
        (Run("inferred", "segment.unit=group"), "models/mgca", "inferred/segment.unit=group", {"segment.unit": "group"}),
        (Run("untrained", "sclip"), "models/mgca", "untrained/sclip", {"clip.dense": "sclip"}),
    ],
)
def test_files_and_changes_of_a_run(run, model, result, changes):
    assert (run.model, run.result, run.changes) == (Path(model), Path(f"results/runs/{result}.json"), changes)


def test_inferred_runs_are_evaluated_by_their_own_unit_alone():
    assert units_of(Run(), P) == units_of(Run("untrained", "clip"), P) == ["meta-point", "pixel", "group"]
    assert units_of(Run("trained", "mgca.k=0"), P) == ["meta-point", "pixel"]
    assert units_of(Run("inferred", "segment.meta_points=9"), P) == ["meta-point"]


def test_a_result_averages_over_seeds_and_keeps_each(tmp_path):
    found = {"street": {(0, "pixel"): {"cat": 10.0, "sea": None}, (1, "pixel"): {"cat": 20.0, "sea": 40.0}}}
    result = make_result(Run("trained", "mgca.k=0"), P, found, {"train": 3.0, "evaluate": 1.0})
    assert result["miou"] == {"street": {"pixel": 20.0}}  # of 10 and (20 + 40) / 2
    assert [seed["miou"]["street"]["pixel"] for seed in result["seeds"]] == [10, 30]
    assert result["seeds"][1]["iou"]["street"]["pixel"] == {"cat": 20.0, "sea": 40.0}
    assert result["thresholds"] == {}  # street has no background
    assert result["classes"] == [["street", "a420285883291977360ae3a0ca0100524031d2e46f8ce2ce38c2f29bce3af252"]]  # cat, sea
    assert result["versions"][0] == ["python", sys.version.split()[0]] and dict(result["versions"])["numpy"] == np.__version__
    assert result["changes"] == [("mgca.k", 0)] and dict(result["parameters"])["segment.meta_points"] == 36
    write_result(result, tmp_path / "a/b/mgca.k=0.4.json")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["mgca.k=0.4.json"]


def test_a_result_names_the_threshold_of_each_benchmark_with_background():
    p = P.model_copy(update={"evaluate": P.evaluate.model_copy(update={"thresholds": {"street": 0.4}})})
    iou = {"pixel": {"background": 1.0, "cat": 2.0}}
    found = {name: {(0, unit): of for unit, of in iou.items()} for name in ("street", "park")} | {"plain": {(0, "pixel"): {"cat": 1.0}}}
    assert make_result(Run(), p, found, {})["thresholds"] == {"street": 0.4, "park": P.segment.threshold}
