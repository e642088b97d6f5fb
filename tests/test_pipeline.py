"""dvc.yaml against the notebooks and modules, and the whole pipeline on a tiny world."""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RERUN_NOTHING = {"params", "figures"}  # params.py only checks values, figures.py only draws them, for all but the stage `figures`


def code(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imported(source, package=False):
    """Modules of ovseg that Python source imports, anywhere in it. package: the source lies in ovseg itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.module == "ovseg" or (package and node.level == 1 and node.module is None):
                found |= {alias.name for alias in node.names}
            elif node.module and (node.module.startswith("ovseg.") or (package and node.level == 1)):
                found.add(node.module.removeprefix("ovseg."))
    return found


def closure(modules):
    modules, queue = set(), list(modules)
    while queue:
        module = queue.pop()
        if module not in modules and module not in RERUN_NOTHING:
            modules.add(module)
            queue += imported((ROOT / "ovseg" / f"{module}.py").read_text(), package=True)
    return modules


def notebook_stages():
    for name, stage in STAGES.items():
        match = re.search(r"runs/sources/(\w+)\.ipynb", str(stage["cmd"]))
        if match:
            yield pytest.param(name, stage, ROOT / "notebooks" / f"{match[1]}.ipynb", id=name)


@pytest.mark.parametrize("name, stage, notebook", list(notebook_stages()))
def test_stage_depends_on_the_modules_that_its_notebook_reaches(name, stage, notebook):
    modules = closure(imported(code(notebook)))
    if name == "figures":
        modules.add("figures")
    declared = {Path(dep).stem for dep in stage["deps"] if dep.startswith("ovseg/")}
    assert declared == modules


@pytest.mark.parametrize("name, stage, notebook", list(notebook_stages()))
def test_stage_declares_the_parameters_that_its_notebook_reads(name, stage, notebook):
    source = code(notebook)
    assert not re.search(r"[(,]\s*p\s*[,)]", source), "p is handed on whole: its keys cannot be seen here"
    read = set(re.findall(r"\bp\.(\w+(?:\.\w+)?)", source))
    for key in read:
        section = key.split(".")[0]
        covered = {section, key} & set(stage["params"]) or any(declared.startswith(f"{section}.") for declared in stage["params"])
        assert covered, f"{key} is read but not declared"


def test_segment_parameters_that_encode_depends_on_are_those_that_windows_and_class_texts_take():
    source = "".join((ROOT / "ovseg" / name).read_text() for name in ("encoding.py",))
    segmenter = (ROOT / "ovseg" / "segmenter.py").read_text()
    windows = segmenter[segmenter.index("def layout") : segmenter.index("def stitch")]
    read = set(re.findall(r"segment\.(\w+)", source)) | set(re.findall(r"settings\.(\w+)", windows))
    declared = {key.split(".")[1] for key in STAGES["encode"]["params"] if key.startswith("segment.")}
    assert read == declared


def test_train_depends_on_nothing_of_inference():
    stage = STAGES["train"]
    assert not any(key.startswith(("segment", "evaluate", "benchmarks", "figures")) for key in stage["params"])
    assert [dep for dep in stage["deps"] if dep.startswith("data/features")] == ["data/features/train"]


def test_pretraining_is_rerun_by_its_own_parameters_only():
    assert STAGES["pretrain"]["params"] == ["pretrain"] and "deps" not in STAGES["pretrain"]
    assert set(re.findall(r"\bp\.(\w+)", code(ROOT / "notebooks" / "pretrain.ipynb"))) <= {"pretrain", "device"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_has_one_cell_of_parameters(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert cells[0].cell_type == "markdown"


def tiny(params):
    """The default parameters, made small."""
    params["scenes"] |= {"pairs": 64, "pictures": 4}
    params["clip"] |= {"batch": 32}
    params["train"] |= {"epochs": 2, "warmup_epochs": 0.5, "batch": 16, "checkpoint_steps": 2}
    params["segment"] |= {"short_side": 128, "window": 128, "stride": 64}
    params["ablations"] = {
        "dense": ["clip", "maskclip"],
        "headline": {"seeds": [1]},
        "granularity": {"values": ["object"], "seeds": [0]},
        "alpha": {"values": [], "seeds": [0]},
        "beta": {"values": [], "granularity": [], "seeds": []},
        "k": {"values": [0], "seeds": [0]},
        "meta_points": [9],
    }
    params["figures"] |= {"pictures": [0, 2], "pairs": [0, 1]}
    return params


def run(folder, *command, check=True):
    """Run a command in folder with this interpreter's environment in front. Returns its output."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 or not check, done.stdout[-4000:]
    return done.stdout


def copy_project(folder):
    """The project's files, those that a clone would have, in a folder with its own git and DVC."""
    tracked = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")


def change(folder, edit):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(edit(yaml.safe_load(path.read_text())), sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    change(folder, tiny)
    run(folder, "dvc", "repro")
    return folder


@contextlib.contextmanager
def changed(folder, section, **values):
    """Within the block, params.yaml has other values in a section, and `sources` has seen them."""
    before = (folder / "params.yaml").read_text()
    change(folder, lambda params: params | {section: params[section] | values})
    run(folder, "dvc", "repro", "sources", check=False)
    try:
        yield
    finally:
        (folder / "params.yaml").write_text(before)
        run(folder, "dvc", "repro", "sources")


def rerun(folder):
    """Names of the stages that `dvc repro` would run."""
    status = json.loads(run(folder, "dvc", "status", "--json"))
    return {name.removeprefix("dvc.yaml:") for name in status}


def test_pipeline_leaves_results_figures_and_executed_notebooks(project):
    runs = ("ablations/headline/seed-1", "ablations/granularity/object-seed-0", "ablations/k/0-seed-0")
    for name in ("ablations/dense/clip", "ablations/dense/maskclip", "mgca", *runs):
        result = json.loads((project / f"results/{name}.json").read_text())
        assert result["run"] == name and set(result["miou"]) == {"things", "scenes"}
        for by_unit in result["miou"].values():
            assert set(by_unit) == {"pixel", "meta-point"} | ({"group"} if name not in runs else set())
            assert all(0 <= miou <= 100 for miou in by_unit.values())
        assert all(row["pictures"] == 4 for row in result["pictures"])
    for figure in (
        "results",
        "levels-things",
        "levels-scenes",
        "granularity",
        "meta_points",
        "alpha",
        "beta",
        "k",
        "training",
        "alignment",
    ):
        assert (project / f"results/figures/{figure}.png").stat().st_size > 5000
    executed = ["prepare", "encode", "train", "ablations/dense/maskclip-evaluate", "evaluate-mgca", "figures", "ablations/meta-points/9"]
    executed += [f"{name}-{step}" for name in runs for step in ("train", "evaluate")]
    for notebook in executed:
        cells = nbformat.read(project / f"runs/{notebook}.ipynb", as_version=4).cells
        assert any(cell.get("outputs") for cell in cells)
    steps = len((project / "models/mgca/history.csv").read_text().splitlines()) - 1
    assert steps == 2 * 64 // 16
    assert not [path for path in (project / "runs/checkpoints").rglob("*") if path.is_file()]


def test_results_hold_what_the_run_was_trained_with(project):
    def settings(name):
        result = json.loads((project / f"results/{name}.json").read_text())
        return {row["name"]: row["value"] for row in result["parameters"]} | {"seed": result["seed"], "miou": result["miou"]}

    own, repeat, level, k = (
        settings(name) for name in ("mgca", *(f"ablations/{n}" for n in ("headline/seed-1", "granularity/object-seed-0", "k/0-seed-0")))
    )
    assert (own["seed"], repeat["seed"], level["mgca.granularity"], k["mgca.k"]) == (0, 1, "object", 0)
    assert own["train.batch"] == 16 and own["segment.meta_points"] == 36
    assert len({json.dumps(found["miou"]["scenes"]["pixel"]) for found in (own, repeat, level, k)}) == 4
    swept = settings("ablations/meta-points/9/mgca")
    assert swept["segment.meta_points"] == 9 and swept["seed"] == 0 and list(swept["miou"]["things"]) == ["meta-point"]


def test_the_report_covers_all_findings(project):
    text = (project / "results/REPORT.md").read_text()
    assert re.findall(r"^## (F\d)", text, re.M) == ["F1", "F2", "F3", "F4", "F5", "F6"]
    images = re.findall(r"\]\((.+?\.png)\)", text)
    assert images and all((project / "results" / image).is_file() for image in images)


def test_pretraining_did_not_run(project):
    assert not (project / "runs/pretrain.ipynb").exists()


def test_second_repro_runs_nothing(project):
    assert "Running stage" not in run(project, "dvc", "repro")


def test_outputs_saved_in_a_source_notebook_rerun_no_notebook(project):
    for name in ("prepare", "train"):  # as when somebody runs and saves it in JupyterLab
        source = project / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(source, as_version=4)
        for count, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.execution_count = count
            cell.outputs = [nbformat.v4.new_output("stream", text=f"output {count}")]
            cell.metadata |= {"execution": {"iopub.execute_input": "2024-01-01T00:00:00Z"}, "scrolled": True}
        notebook.metadata.language_info = {"name": "python", "version": "3.99.0", "file_extension": ".py"}
        nbformat.write(notebook, source)
    ran = re.findall(r"Running stage '([^']+)'", run(project, "dvc", "repro"))
    assert ran == ["sources"]


def test_changing_k_retrains_but_does_not_encode_again(project):
    with changed(project, "mgca", k=0.1):  # evaluations follow once the weights differ
        assert rerun(project) == {"train", "figures", "train-headline@1", "train-granularity@object-0", "train-k@0-0"}


def test_changing_meta_points_trains_nothing(project):
    with changed(project, "segment", meta_points=25):
        evaluations = {"evaluate", "evaluate-headline@1", "evaluate-granularity@object-0", "evaluate-k@0-0"}
        assert rerun(project) == evaluations | {"evaluate-dense@clip", "evaluate-dense@maskclip", "meta-points@9", "figures"}


@pytest.mark.parametrize(
    "ablation, added",
    [
        ({"alpha": {"values": [0.5], "seeds": [0]}}, {"train-alpha@0.5-0", "evaluate-alpha@0.5-0"}),
        ({"k": {"values": [0, 0.2], "seeds": [0]}}, {"train-k@0.2-0", "evaluate-k@0.2-0"}),
        ({"granularity": {"values": ["object", "region"], "seeds": [0]}}, {"train-granularity@region-0", "evaluate-granularity@region-0"}),
        ({"meta_points": [9, 16]}, {"meta-points@16"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_added_to_an_ablation_adds_its_own_stages_and_reruns_only_the_figures(project, ablation, added):
    with changed(project, "ablations", **ablation):
        assert rerun(project) == added | {"figures"}


def test_bad_parameter_stops_before_any_stage_with_one_line(project):
    with changed(project, "mgca", alpha=4):
        output = run(project, "dvc", "repro", check=False)
    assert "params.yaml: mgca.alpha = 4: should be less than or equal to 1" in output
    assert "> papermill" not in output and "Traceback" not in output


def test_trained_segmenter_loads_from_anywhere_and_segments(project, monkeypatch, tmp_path):
    import numpy as np

    from ovseg import Segmenter

    monkeypatch.chdir(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    found = Segmenter.load(project / "models/mgca", device="cpu").segment(picture, ["car", "tree"], background=True)
    assert found.labels.shape == (90, 150) and found.scores.shape == (2, 90, 150)
    assert found.names == ("background", "car", "tree") and set(np.unique(found.labels)) <= {0, 1, 2}
