"""What reruns what, read from dvc.yaml: which stages depend on a file or a parameter at once (not through other stages)."""

from pathlib import Path

import pytest
import yaml

from ovseg import params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RUNS = params.load_runs(ROOT / "params.yaml")


def stages_of_file(path):
    """Stages with this file, or a folder above it, among their dependencies."""
    return {name for name, stage in STAGES.items() if any(path == dep or path.startswith(f"{dep}/") for dep in stage.get("deps", []))}


def stages_of_key(key):
    """Stages that name this parameter, or its section; `sources`, which reads all of params.yaml, aside."""
    return {name for name, stage in STAGES.items() if {key, key.split(".")[0]} & set(stage.get("params", []))}


@pytest.mark.parametrize(
    "path, stages",
    [
        ("notebooks/run.ipynb", {"sources"}),
        ("params.yaml", {"sources"}),
        ("runs/sources/run.ipynb", {"run", "inferred", "untrained"}),
        ("runs/sources/figures.ipynb", {"figures"}),
        ("ovseg/methods/tcl.py", {"run"}),
        ("ovseg/training/loop.py", {"run"}),
        ("ovseg/segmentation/units.py", {"run", "inferred", "untrained", "figures"}),
        ("ovseg/benchmarks/miou.py", {"encode", "run", "inferred", "untrained", "figures"}),
        ("ovseg/clip/dense.py", {"encode", "run"}),
        ("ovseg/data/captions.py", {"prepare", "encode", "run"}),
        ("ovseg/world/scenes.py", {"prepare"}),
        ("ovseg/world/pretraining.py", set()),  # only its parameters rerun `pretrain`
        ("ovseg/study/report.py", {"figures"}),
        ("ovseg/inspection/view.py", set()),
        ("ovseg/cli.py", set()),
        ("data/prepared/pairs.npz", {"encode", "run"}),
        ("data/features/train/pairs.npy", {"run"}),
        ("data/features/benchmarks/things/clip.npy", {"run", "inferred", "untrained", "figures"}),
        ("models/clip/open_clip_model.safetensors", {"encode"}),
        ("models/default/seeds/0/decoder.safetensors", {"inferred", "figures"}),
        ("results/runs/default.json", {"figures"}),
    ],
)
def test_a_file_reruns_what_reads_it(path, stages):
    assert stages_of_file(path) == stages


@pytest.mark.parametrize(
    "key, stages",
    [
        ("scenes.pairs", {"prepare"}),
        ("data.max_bad_fraction", {"prepare"}),
        ("benchmarks", {"encode"}),
        ("clip.dense", {"encode"}),
        ("segment.stride", {"encode"}),
        ("segment.meta_points", set()),
        ("pretrain.lr", {"pretrain"}),
        ("figures.quantiles", {"figures"}),
        ("ablations.trained", {"figures"}),
        ("mgca.k", set()),
    ],
)
def test_a_parameter_reruns_what_names_it(key, stages):
    assert stages_of_key(key) == stages


@pytest.mark.parametrize(
    "key, value, names",
    [
        ("mgca.tau", 0.1, lambda run: run.kind == "trained" and "mgca" in run.params.sections),
        ("tcl.area", 0.3, lambda run: run.name == "train.method=tcl"),
        ("train.lr", 0.001, lambda run: run.kind == "trained" and "train.lr" not in run.changes),
        ("train.workers", 1, lambda run: False),
        ("segment.meta_points", 49, lambda run: "segment.meta_points" not in run.changes),
        ("evaluate.thresholds", {"things": 0.5}, lambda run: True),
        ("train.seeds", 2, lambda run: run.kind != "untrained"),
    ],
)
def test_a_parameter_reruns_the_runs_that_use_it(key, value, names, tmp_path):
    section, name = key.split(".")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values[section][name] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    others = params.load_runs(tmp_path / "params.yaml")
    assert {name for name in RUNS if RUNS[name].depends() != others[name].depends()} == {run.name for run in RUNS.values() if names(run)}


def test_every_run_stage_depends_on_its_own_parameters_and_writes_its_own_files():
    for name in ("run", "inferred", "untrained"):
        assert "runs/sources/runs/${item.line}.json" in STAGES[name]["deps"]
        outs = [out if isinstance(out, str) else next(iter(out)) for out in STAGES[name]["outs"]]
        assert {"runs/${item.line}.ipynb", "results/runs/${item.line}.json"} <= set(outs)
        assert all("${item.line}" in out for out in outs)
    lists = [STAGES[name]["matrix"]["line"] for name in ("run", "inferred", "untrained")]
    assert lists == ["${ablations.trained}", "${ablations.inferred}", "${ablations.untrained}"]


def test_no_trained_run_depends_on_another():
    assert not any(dep.startswith(("models", "results")) for dep in STAGES["run"]["deps"])
