"""What reruns what, read from dvc.yaml: which stages depend on a file or a parameter at once (not through other stages)."""

from pathlib import Path

import pytest
import yaml
from made import RUNS
from tiny import ROOT

from ovseg import params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
FILES = {  # stages: the files that rerun them
    "sources": "notebooks/run.ipynb params.yaml",
    "scenes": "ovseg/world/scenes.py",
    "scenes prepare encode benchmarks run": "ovseg/data/shards.py",
    "prepare encode benchmarks run": "ovseg/data/captions.py data/prepared/scenes/train-00000.tar",
    "encode": "runs/sources/images.json",
    "encode benchmarks": "models/clip/open_clip_model.safetensors",
    "encode benchmarks run": "ovseg/clip/dense.py",
    "encode run": "data/prepared/pairs.npz",
    "benchmarks run inferred untrained retrieved figures": "ovseg/benchmarks/miou.py ovseg/segmentation/names.py",
    "run": "ovseg/methods/tcl.py ovseg/training/loop.py",
    "run retrieved": "data/features/train/pairs.npy",
    "run inferred untrained retrieved": "runs/sources/run.ipynb ovseg/training/decoder.py",
    "run inferred untrained retrieved figures": "ovseg/segmentation/units.py data/features/benchmarks/things/clip.npy",
    "inferred figures": "models/default/seeds/0/decoder.safetensors",
    "figures": "runs/sources/figures.ipynb runs/sources/runs ovseg/study/report.py results/runs/default.json results/other_processor.json",
    "": "ovseg/world/pretraining.py ovseg/inspection/view.py ovseg/cli.py",  # only its parameters rerun `pretrain`
}
KEYS = {  # stages: the parameters that rerun them; of `run`, see below
    "scenes": "scenes.pairs",
    "scenes prepare": "data.shards",
    "prepare": "data.max_bad_fraction",
    "encode benchmarks": "clip.dense segment.templates",
    "benchmarks": "benchmarks segment.stride",
    "pretrain": "pretrain.lr",
    "figures": "figures.quantiles",
    "": "segment.meta_points mgca.k ablations.trained",
}


def test_a_stage_reruns_by_its_files_and_parameters_and_what_they_are_in():
    for kind, table in (("deps", FILES), ("params", KEYS)):
        for stages, names in table.items():
            for name in names.split():
                above = {name, name.split(".")[0], *map(str, Path(name).parents)}
                assert {stage for stage in STAGES if above & set(STAGES[stage].get(kind, []))} == set(stages.split()), name


@pytest.mark.parametrize("key, value, uses", [
    ("mgca.tau", 0.1, lambda run: run.kind == "trained" and "mgca" in run.params.sections),
    ("tcl.area", 0.3, lambda run: run.name.startswith("train.method=tcl")),
    ("reco.pictures", 7, lambda run: run.name == "reco"),
    ("cocu.concepts", 9, lambda run: run.kind == "trained" and "cocu" in run.params.training),
    ("train.lr", 0.001, lambda run: run.kind == "trained" and "train.lr" not in run.changes),
    ("train.workers", 1, lambda run: False),
    ("segment.meta_points", 49, lambda run: "segment.meta_points" not in run.changes),
    ("evaluate.thresholds", {"things": 0.5}, lambda run: True),
    ("train.seeds", 2, lambda run: run.kind != "untrained" and "train.seeds" not in run.name),
    ("ablations.seeds", 2, lambda run: run.kind == "trained" and run.name != "default" and "train.seeds" not in run.name),
])  # fmt: skip
def test_a_parameter_reruns_the_runs_that_use_it(key, value, uses, tmp_path):
    section, name = key.split(".")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values[section][name] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    others = params.load_runs(tmp_path / "params.yaml")
    assert {name for name in RUNS if RUNS[name].depends() != others[name].depends()} == {run.name for run in RUNS.values() if uses(run)}


def test_an_untrained_run_needs_no_training_data():
    made_by = [(out if isinstance(out, str) else next(iter(out)), name) for name, stage in STAGES.items() for out in stage["outs"]]
    needed = {"untrained"}
    for _ in STAGES:
        deps = [f"{dep}/" for name in needed for dep in STAGES[name].get("deps", [])]
        needed |= {name for out, name in made_by if any(dep.startswith(f"{out}/") or f"{out}/".startswith(dep) for dep in deps)}
    assert needed == {"untrained", "sources", "scenes", "benchmarks", "pretrain"}


def test_every_run_depends_on_its_own_parameters_only_and_writes_its_own_files():
    for name, lines in {"run": "trained", "inferred": "inferred", "untrained": "untrained", "retrieved": "retrieved"}.items():
        assert STAGES[name]["matrix"]["line"] == f"${{ablations.{lines}}}"
        assert "runs/sources/runs/${item.line}.json" in STAGES[name]["deps"]
        outs = [out if isinstance(out, str) else next(iter(out)) for out in STAGES[name]["outs"]]
        assert {"runs/${item.line}.ipynb", "results/runs/${item.line}.json"} <= set(outs)
        assert all("${item.line}" in out for out in outs)
    assert not any(dep.startswith(("models", "results")) for dep in STAGES["run"]["deps"])  # no trained run depends on another
