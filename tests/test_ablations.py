"""The runs that ablations.py names are those that dvc.yaml makes."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ovseg import params
from ovseg.study import ablations

ROOT = Path(__file__).resolve().parents[1]
P = params.load(path=ROOT / "params.yaml")


@pytest.fixture(scope="module")
def commands():
    """{stage: its command} as DVC resolves dvc.yaml with params.yaml."""
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        return {stage.addressing: "\n".join([stage.cmd] if isinstance(stage.cmd, str) else stage.cmd) for stage in repo.index.stages}


def test_each_run_has_a_training_stage_with_its_name_and_changes(commands):
    made = {}
    for command in commands.values():
        found = re.search(r"-p run (ablations\S+) -y 'changes: (.*)' runs/sources/train.ipynb (\S+)", command)
        if found:
            made[found[1]] = YAML(typ="safe").load(found[2])
            assert found[3] == f"runs/{found[1]}-train.ipynb"
    assert made == {run.name: run.changes for run in ablations.trained(P.ablations)}


def test_each_run_has_an_evaluation_stage(commands):
    runs = set(re.findall(r"-p run (\S+) runs/sources/evaluate.ipynb", "\n".join(commands.values())))
    untrained = {f"ablations/dense/{way}" for way in P.ablations.dense}
    assert runs == untrained | {"mgca"} | {run.name for run in ablations.trained(P.ablations)}
    assert set(ablations.untrained(P.ablations).values()) == untrained


def test_each_result_is_an_output_of_a_stage(commands):
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        outs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    for path in ablations.result_files(P.ablations):
        assert path in outs or str(Path(path).parent) in outs, path


def test_runs_that_train_nothing_are_named_by_their_way():
    changed = P.ablations.model_copy(update={"dense": ["sclip", "maskclip"]})
    assert ablations.untrained(changed) == {"sclip": "ablations/dense/sclip", "maskclip": "ablations/dense/maskclip"}
    dense = [path for path in ablations.result_files(changed) if "/dense/" in path]
    assert dense == [f"results/ablations/dense/{way}.json" for way in ("sclip", "maskclip")]


def test_each_run_is_valid_and_named_once():
    runs = ablations.trained(P.ablations)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        params.load(run.changes, ROOT / "params.yaml")


def test_a_value_adds_a_run_for_each_of_its_seeds_and_changes_no_other():
    before = ablations.trained(P.ablations)
    alpha = P.ablations.alpha.model_copy(update={"values": [*P.ablations.alpha.values, 0.6], "seeds": [0, 7]})
    added = [run for run in ablations.trained(P.ablations.model_copy(update={"alpha": alpha})) if run not in before]
    values = {run.name: run.changes for run in added if run.changes["mgca.alpha"] == 0.6}
    assert values == {f"ablations/alpha/0.6-seed-{s}": {"mgca.alpha": 0.6, "train.seed": s} for s in (0, 7)}


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("alpha", [0.01], "ablations.alpha.values: 0.01: allowed are mgca.k"),
        ("k", [0.9], "ablations.k.values: 0.9: allowed are 0 to mgca.alpha"),
        ("beta", [0], "ablations.beta.values: 0: allowed are shares above 0"),
        ("alpha", [0.5, 0.5], "ablations.alpha.values.*each value once"),
        ("granularity", ["objects"], "ablations.granularity.values.0 = 'objects': one or more of object, region, pixel"),
        ("granularity", ["region+object"], "in this order"),
        ("granularity", [], "ablations.granularity.values"),
        ("beta", [5e-5], "ablations.beta.values.0.*: write it without an exponent"),
    ],
)
def test_bad_values_are_named(tmp_path, section, values, message):
    yaml = YAML(typ="safe")
    content = yaml.load((ROOT / "params.yaml").read_text())
    content["ablations"][section]["values"] = values
    yaml.dump(content, tmp_path / "params.yaml")
    with pytest.raises(params.ParamsError, match=message):
        params.load(path=tmp_path / "params.yaml")


def test_runs_of_the_granularities_at_a_seed():
    found = ablations.of_levels(P.ablations, 1)
    assert found["object"] == "ablations/granularity/object-seed-1" and set(found) == set(P.ablations.granularity.values)
