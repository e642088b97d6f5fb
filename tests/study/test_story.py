"""What an executed notebook says first."""

import shutil
from pathlib import Path

import pytest

from ovseg import params
from ovseg.study import runs, story

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the project's params.yaml, and results/runs of the default run and the baseline."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write(runs.Run(), {"pixel": [40, 44], "meta-point": [50, 54]})
    write(runs.Run("untrained", "maskclip"), {"pixel": [10], "meta-point": [12]})
    return tmp_path


def write(run, by_unit):
    """Write a run's result on one benchmark of one class, by unit and seed. Returns it."""
    found = {(seed, unit): {"background": float(miou)} for unit, values in by_unit.items() for seed, miou in enumerate(values)}
    result = runs.make_result(run, run.params(), {"street": found}, {"train": 0, "evaluate": 0})
    runs.write_result(result, run.result)
    return result


@pytest.mark.parametrize(
    "run, expected",
    [
        (runs.Run(), ["**`mgca`**: the default run", "MGCA, trained at seeds 0, 1, 2", "meta-point, pixel, group"]),
        (
            runs.Run("trained", "mgca.k=0.4"),
            ["**`trained/mgca.k=0.4`**", "`mgca.k` from 0.06 to 0.4", "seeds 0, 1, 2", "meta-point, pixel ("],
        ),
        (
            runs.Run("trained", "mgca.k=0.06,train.seeds=1"),
            ["`mgca.k` = 0.06, as the default run", "`train.seeds` from 3 to 1", "at seeds 0\n"],
        ),
        (runs.Run("inferred", "segment.unit=group"), ["`segment.unit` from meta-point to group (the default run's decoders)"]),
        (runs.Run("untrained", "sclip"), ["as SCLIP reads them, without any training", "nothing is trained"]),
    ],
)
def test_a_run_says_its_name_what_it_changes_and_its_seeds(project, run, expected):
    text = story.head(run, run.params())
    assert all(part in text for part in expected), text


def test_a_shared_stage_says_what_it_changes():
    assert story.stage("prepare") == "**The stage `prepare`**, with `params.yaml` as it is."
    assert story.stage("prepare", "scenes.pairs=10") == "**The stage `prepare`**, with `scenes.pairs` = 10."


def test_values_are_listed_and_long_lists_counted():
    text = story.values({"segment": params.load(path=ROOT / "params.yaml").segment})
    assert text.startswith("- **segment**: unit = meta-point, ") and text.endswith("templates = 9 of them")


def test_a_run_stands_beside_the_default_run_and_the_baseline(project):
    run = runs.Run("trained", "mgca.k=0.4")
    result, others = write(run, {"pixel": [45, 47]}), story.references(run)
    row = story.beside(result, others).loc["street", "pixel"]
    assert row.to_dict() == {
        "this run": "46.0 ± 1.4 (2)",
        "default run": "42.0 ± 2.8 (2)",
        "this - default run": "+4.0",
        "MaskCLIP": "10.0",
        "this - MaskCLIP": "+36.0",
    }
    assert "Threshold of the background (softmax score): 0.7 on `street`." in story.note(result, others)
    assert "Not there" not in story.note(result, others)


def test_without_its_unit_another_run_stands_there_by_its_own(project):
    run = runs.Run("inferred", "segment.unit=group")
    row = story.beside(write(run, {"group": [51]}), story.references(run)).loc["street", "group"]
    assert row["default run"] == "52.0 ± 2.8 (2), by meta-point" and row["this - default run"] == "-1.0"


def test_the_default_run_and_the_baseline_are_not_compared_with_themselves(project):
    assert list(story.references(runs.Run())) == ["MaskCLIP"]
    assert list(story.references(runs.Run("untrained", "maskclip"))) == ["default run"]


def test_a_result_that_is_missing_or_made_with_other_values_is_left_out_and_named(project):
    run = runs.Run("untrained", "clip")
    result = write(run, {"pixel": [5]})
    runs.Run("untrained", "maskclip").result.unlink()
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("k: 0.06", "k: 0.05"))
    others = story.references(run)
    assert others == {"default run": None, "MaskCLIP": None}
    assert set(story.beside(result, others).loc["street", "pixel"]) == {"5.0", "–"}
    assert "Not there when this notebook ran: default run, MaskCLIP." in story.note(result, others)


def test_iou_of_classes_is_the_mean_over_the_seeds_that_have_it():
    iou = [{"street": {"pixel": {"a": 10.0, "b": None, "c": None}}}, {"street": {"pixel": {"a": 20.0, "b": 30.0, "c": None}}}]
    result = {"miou": {"street": {"pixel": 0}}, "seeds": [{"iou": found} for found in iou]}
    assert story.by_class(result)["street", "pixel"].to_dict() == {"a": "15.0", "b": "30.0", "c": ""}
