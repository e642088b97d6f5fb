"""The whole pipeline on a tiny data set: the runs on two Dask workers, without a network where that can be done."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GROUPS = "train.method=groupvit+mixreorg,segment.unit=learned-group"
TRAINED = ["default", "mgca.granularity=object,train.seeds=2", "train.method=supervised", GROUPS]


def tiny(values):
    """The default parameters, made small."""
    values["scenes"] |= {"pairs": 64, "pictures": 4}
    values["clip"] |= {"batch": 32}
    values["train"] |= {"seeds": 1, "epochs": 2, "warmup_epochs": 0.5, "batch": 16, "checkpoint_steps": 2, "threads": 1}
    values["segment"] |= {"short_side": 128, "window": 128, "stride": 64}
    values["ablations"] |= {"trained": TRAINED, "inferred": ["segment.meta_points=9"], "untrained": ["maskclip"], "retrieved": []}
    values["figures"] |= {"quantiles": [0, 1], "pairs": [0, 1]}


def run(folder, *command, check=True, **variables):
    """Run a command in folder with this interpreter's environment in front. Returns its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # which other tests set
    environment |= {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder)} | variables
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 or not check, done.stdout[-4000:]
    return done.stdout


def copy_project(folder, edit):
    """The files that a clone would have, in a folder with its own git and DVC, and other parameters. edit: changes their dict."""
    tracked = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.rmtree(folder / "results/runs", ignore_errors=True)  # of the study in git
    run(folder, "git", "init", "--quiet")
    change(folder, edit)


def change(folder, edit):
    path = folder / "params.yaml"
    values = yaml.safe_load(path.read_text())
    edit(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def stale(folder):
    """Names of the stages that `dvc repro` would run at once; those that follow from their outputs are not among them."""
    return set(json.loads(run(folder, "dvc", "status", "--json")))


ON_TWO_WORKERS = """
trap 'kill -9 $(jobs -p)' EXIT
address=${OVSEG_LAUNCH#*tcp://} && address=${address% *}
dask scheduler --host 127.0.0.1 --port ${address#*:} --no-dashboard > scheduler.log 2>&1 &
for worker in 1 2; do
  dask worker tcp://$address --nthreads 1 --no-dashboard --no-nanny --resources RUN=1 > worker$worker.log 2>&1 &
done
python scripts/repro.py 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder, tiny)
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]  # no network but loopback
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"OVSEG_LAUNCH": f"python scripts/launch_dask.py tcp://127.0.0.1:{port} RUN=1"}
    print(run(folder, *alone, "bash", "-c", ON_TWO_WORKERS, **launch))
    return folder


def result(folder, name):
    values = json.loads((folder / f"results/runs/{name}.json").read_text())
    return values | {key: dict(values[key]) for key in ("changes", "parameters")}


def test_each_run_leaves_its_result_by_seed_and_unit(project):
    units = {"pixel", "meta-point"}
    expected = {
        "default": ([0], units | {"group"}),
        TRAINED[1]: ([0, 1], units),
        "train.method=supervised": ([0], units),
        GROUPS: ([0], {"learned-group", "pixel"}),
        "segment.meta_points=9": ([0], {"meta-point"}),
        "maskclip": ([None], units | {"group"}),
    }
    assert {path.stem for path in (project / "results/runs").glob("*.json")} == {Path(f"{name}.json").stem for name in expected}
    for name, (seeds, of_units) in expected.items():
        values = result(project, name)
        assert values["run"] == name and [seed["seed"] for seed in values["seeds"]] == seeds
        for benchmark in ("things", "scenes"):
            assert set(values["miou"][benchmark]) == of_units
            for unit in of_units:
                classes = [iou for iou in values["seeds"][0]["iou"][benchmark][unit].values() if iou is not None]
                miou = values["seeds"][0]["miou"][benchmark][unit]
                assert miou == pytest.approx(sum(classes) / len(classes)) and 0 <= miou <= 100
    level = result(project, TRAINED[1])
    assert level["parameters"]["mgca.granularity"] == "object" and level["parameters"]["train.seeds"] == 2
    of_seeds = [result(project, "default")["seeds"][0], *level["seeds"]]
    assert len({json.dumps(seed["iou"]["scenes"]["pixel"]) for seed in of_seeds}) == 3  # none stands in for another


def test_models_hold_what_loading_and_publishing_need_and_no_checkpoint_is_left(project):
    files = {"decoder.safetensors", "history.csv", "training.json"}
    assert {path.name for path in (project / "models" / TRAINED[1]).iterdir()} == {"seeds", "segmenter.json", "result.json"}
    assert {path.name for path in (project / "models" / TRAINED[1] / "seeds/1").iterdir()} == files
    assert {path.name for path in (project / "models" / GROUPS / "seeds/0").iterdir()} == {*files, "objective.safetensors"}
    assert json.loads((project / "models/default/result.json").read_text())["data"]["pairs"] == 64
    assert len((project / "models/default/seeds/0/history.csv").read_text().splitlines()) == 1 + 2 * 64 // 16
    assert not [path for path in (project / "runs/checkpoints").rglob("*") if path.is_file()]


def test_executed_notebooks_hold_outputs_and_no_warnings(project):
    for name in ("scenes", "prepare", "encode", "benchmarks", "figures", "maskclip", "segment.meta_points=9", *TRAINED):
        cells = nbformat.read(project / f"runs/{name}.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        errors = [line for output in outputs if output.get("name") == "stderr" for line in output.text.splitlines()]
        assert all(re.match(r"[\w, ]+: +(\d+%\|.*|0it )", line) for line in errors if line.strip()), errors  # a line for each bar
    assert not (project / "runs/pretrain.ipynb").exists()


def test_the_report_has_all_findings_runs_and_figures(project):
    text = (project / "results/REPORT.md").read_text()
    assert re.findall(r"^## (F\d)", text, re.M) == ["F1", "F2", "F3", "F4", "F5", "F6"]
    for name in ("default", "segment.meta_points = 9", "MaskCLIP, untrained", "GroupViT + MixReorg"):
        assert f"| {name} " in text
    images = re.findall(r"\]\((.+?\.png)\)", text)
    assert images and all((project / "results" / image).stat().st_size > 5000 for image in images)


def test_a_second_repro_runs_nothing_and_outputs_saved_in_a_notebook_rerun_only_sources(project):
    assert "Running stage" not in run(project, "dvc", "repro")
    source = project / "notebooks/run.ipynb"
    notebook = nbformat.read(source, as_version=4)
    for count, cell in enumerate(notebook.cells):  # as when somebody runs and saves it in JupyterLab or Colab
        del cell["id"]
        cell.metadata |= {"scrolled": True, "id": f"colab{count}"}
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = count, [nbformat.v4.new_output("stream", text="output")]
    notebook.nbformat_minor = 4  # as VS Code and Colab
    notebook.metadata.kernelspec = {"name": "mine", "display_name": "Mine"}
    nbformat.write(notebook, source)
    assert re.findall(r"Running stage '([^']+)'", run(project, "dvc", "repro")) == ["sources"]


def test_a_line_added_reruns_itself_and_the_figures(project):
    before = (project / "params.yaml").read_text()
    change(project, lambda values: values["ablations"]["trained"].append("mgca.tau=0.1"))
    run(project, "dvc", "repro", "sources")
    assert stale(project) == {"run@mgca.tau=0.1", "figures"}
    (project / "params.yaml").write_text(before)
    run(project, "dvc", "repro", "sources")
    assert stale(project) == set()


def test_a_bad_parameter_stops_before_any_stage_with_one_line(project):
    before = (project / "params.yaml").read_text()
    change(project, lambda values: values["mgca"].update(alpha=4))
    output = run(project, "dvc", "repro", check=False)
    (project / "params.yaml").write_text(before)
    assert "params.yaml: mgca.alpha = 4: must be less than or equal to 1" in output
    assert "notebook.sh" not in output and "Traceback" not in output


def test_metrics_and_parameters_are_shown_by_dvc(project):
    shown = json.loads(run(project, "dvc", "metrics", "show", "--json"))
    assert "results/runs/default.json" in str(shown) and "miou" in str(shown)


def test_the_trained_segmenter_loads_from_anywhere(project, monkeypatch, tmp_path):
    from ovseg import Segmenter

    monkeypatch.chdir(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    segmentation = Segmenter.load(project / "models/default", device="cpu").segment(picture, ["car", "tree"], background=True)
    assert segmentation.labels.shape == (90, 150) and segmentation.scores.shape == (2, 90, 150)


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_in_git_has_no_outputs_and_one_cell_of_parameters(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1 and cells[0].cell_type == "markdown"
