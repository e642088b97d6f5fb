"""The whole pipeline on a tiny data set: what it leaves, and what reruns what."""

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

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GROUPS = "train.method=mixreorg+groupvit,segment.unit=learned-group"
TRAINED = ["mgca.granularity=object", "mgca.k=0,train.seeds=2", "train.method=supervised", GROUPS]
INFERRED = ["segment.meta_points=9"]
ABLATIONS = {f"ablation@{line}" for line in TRAINED}
INFERENCES = {f"evaluate-inferred@{line}" for line in INFERRED}
EVALUATIONS = {"evaluate", "evaluate-untrained@clip", "evaluate-untrained@maskclip"} | INFERENCES | ABLATIONS
TRAININGS = {"train"} | ABLATIONS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_has_one_cell_of_parameters(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert cells[0].cell_type == "markdown"


def test_a_line_of_trained_depends_on_what_the_default_run_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    default, line = [stages["train"], stages["evaluate"]], stages["ablation"]
    of_default = {key for stage in default for key in stage["params"]}
    assert set(line["params"]) == of_default | {"supervised"}  # which the default run cannot be
    needed = {path for stage in default for path in stage["deps"]} - {"models/mgca/seeds"}  # its own are outputs
    held = {path for path in needed if any(path == folder or path.startswith(f"{folder}/") for folder in line["deps"])}
    assert held == needed


def tiny(params):
    """The default parameters, made small."""
    params["scenes"] |= {"pairs": 64, "pictures": 4}
    params["clip"] |= {"batch": 32}
    params["train"] |= {"seeds": 1, "epochs": 2, "warmup_epochs": 0.5, "batch": 16, "checkpoint_steps": 2, "threads": 1}
    params["segment"] |= {"short_side": 128, "window": 128, "stride": 64}
    params["ablations"] = {"trained": TRAINED, "inferred": INFERRED, "untrained": ["clip", "maskclip"]}
    params["figures"] |= {"quantiles": [0, 1], "pairs": [0, 1]}
    return params


def run(folder, *command, check=True):
    """Run a command in folder with this interpreter's environment in front. Returns its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder)}
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
    shutil.rmtree(folder / "results/runs", ignore_errors=True)  # of the study in git
    run(folder, "git", "init", "--quiet")


def change(folder, edit):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(edit(yaml.safe_load(path.read_text())), sort_keys=False))


def without_network():
    """The start of a command line that runs the rest of it with the loopback address alone; [] where the system does not let us."""
    start = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        return start if subprocess.run([*start, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small study, run from end to end without a network where that can be done."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    change(folder, tiny)
    run(folder, *without_network(), sys.executable, "-m", "ovseg.study.jobs", "--jobs", "2")
    return folder


@contextlib.contextmanager
def changed(folder, section, **values):
    """Within the block, params.yaml has other values in a section."""
    before = (folder / "params.yaml").read_text()
    change(folder, lambda params: params | {section: params[section] | values})
    try:
        yield
    finally:
        (folder / "params.yaml").write_text(before)


def stale(folder):
    """Names of the stages that `dvc repro` would run at once, `sources` aside, which checks every params.yaml.
    What follows from new outputs is not among them."""
    status = json.loads(run(folder, "dvc", "status", "--json"))
    return {name.removeprefix("dvc.yaml:") for name in status} - {"sources"}


def result(folder, name):
    found = json.loads((folder / f"results/runs/{name}.json").read_text())
    return found | {key: dict(found[key]) for key in ("changes", "parameters")}


def test_each_run_leaves_its_result_by_seed_and_unit(project):
    units = {"pixel", "meta-point"}
    expected = {
        "mgca": ([0], units | {"group"}),
        "trained/mgca.granularity=object": ([0], units),
        "trained/mgca.k=0,train.seeds=2": ([0, 1], units),
        "trained/train.method=supervised": ([0], units),
        f"trained/{GROUPS}": ([0], {"learned-group", "pixel"}),
        "inferred/segment.meta_points=9": ([0], {"meta-point"}),
        "untrained/clip": ([None], units | {"group"}),
        "untrained/maskclip": ([None], units | {"group"}),
    }
    files = [str(path.relative_to(project / "results/runs")) for path in (project / "results/runs").rglob("*.json")]
    assert {file.removesuffix(".json") for file in files} == set(expected)
    for name, (seeds, of_units) in expected.items():
        found = result(project, name)
        assert found["run"] == name and [seed["seed"] for seed in found["seeds"]] == seeds
        for benchmark in ("things", "scenes"):
            assert set(found["miou"][benchmark]) == of_units
            for unit in of_units:
                values = [seed["miou"][benchmark][unit] for seed in found["seeds"]]
                assert found["miou"][benchmark][unit] == pytest.approx(sum(values) / len(values))
                classes = [iou for iou in found["seeds"][0]["iou"][benchmark][unit].values() if iou is not None]
                assert values[0] == pytest.approx(sum(classes) / len(classes)) and 0 <= values[0] <= 100


def test_results_hold_what_the_run_was_trained_and_evaluated_with(project):
    own, level, k, *_ = (result(project, name) for name in ("mgca", *(f"trained/{line}" for line in TRAINED)))
    assert own["changes"] == {} and own["parameters"]["mgca.k"] == 0.06 and own["parameters"]["segment.meta_points"] == 36
    assert level["changes"] == {"mgca.granularity": "object"} == {"mgca.granularity": level["parameters"]["mgca.granularity"]}
    assert k["parameters"]["mgca.k"] == 0 and k["parameters"]["train.seeds"] == 2
    seeds = [found["seeds"][index]["iou"]["scenes"]["pixel"] for found, index in ((own, 0), (level, 0), (k, 0), (k, 1))]
    assert len({json.dumps(iou) for iou in seeds}) == 4  # none stands in for another
    assert result(project, "inferred/segment.meta_points=9")["parameters"]["segment.meta_points"] == 9


def test_models_hold_a_folder_for_each_seed_and_no_checkpoint_is_left(project):
    files = {"decoder.safetensors", "history.csv", "training.json"}
    for folder in ("models/mgca/seeds/0", "models/trained/mgca.k=0,train.seeds=2/seeds/1"):
        assert {path.name for path in (project / folder).iterdir()} == files
    assert {path.name for path in (project / f"models/trained/{GROUPS}/seeds/0").iterdir()} == {*files, "objective.safetensors"}
    assert len((project / "models/mgca/seeds/0/history.csv").read_text().splitlines()) == 1 + 2 * 64 // 16
    assert not [path for path in (project / "runs/checkpoints").rglob("*") if path.is_file()]


def test_executed_notebooks_hold_outputs_and_figures_are_drawn(project):
    executed = ["prepare", "encode", "train", "evaluate", "figures", "untrained/clip", "inferred/segment.meta_points=9"]
    executed += [f"trained/{line}/{step}" for line in TRAINED for step in ("train", "evaluate")]
    for notebook in executed:
        cells = nbformat.read(project / f"runs/{notebook}.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert any("text/markdown" in output.get("data", {}) for output in outputs)  # what the run is
        errors = [line for output in outputs if output.get("name") == "stderr" for line in output.text.splitlines()]
        assert all(re.match(r"[\w, ]+: +(\d+%\|.*|0it )", line) for line in errors), errors  # a line for each bar, no warnings
    names = [
        "methods", "examples-things", "methods-scenes", "levels-things", "levels-scenes", "granularity",
        "meta_points", "mgca.granularity", "mgca.k", "segment.meta_points",
    ]
    for figure in (*names, "training", "alignment"):
        assert (project / f"results/figures/{figure}.png").stat().st_size > 5000


def test_the_report_covers_all_findings_and_all_runs(project):
    text = (project / "results/REPORT.md").read_text()
    assert re.findall(r"^## (F\d)", text, re.M) == ["F1", "F2", "F3", "F4", "F5", "F6"]
    runs = ("default", "mgca.granularity = object", "mgca.k = 0", "segment.meta_points = 9", "MaskCLIP, untrained", "MixReorg + GroupViT")
    for row in (f"| {run} " for run in runs):
        assert row in text
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


@pytest.mark.parametrize(
    "section, values, expected",
    [
        ("mgca", {"tau": 0.1}, TRAININGS),  # evaluations follow once the weights differ
        ("train", {"lr": 0.004}, TRAININGS),
        ("train", {"workers": 1, "checkpoint_steps": 7}, set()),  # which change no result
        ("segment", {"meta_points": 25}, EVALUATIONS),
        ("evaluate", {"thresholds": {"things": 0.5}}, EVALUATIONS),
        ("segment", {"stride": 128}, {"encode"}),
        ("data", {"max_bad_fraction": 0.2}, {"prepare"}),
        ("figures", {"quantiles": [0.5]}, {"figures"}),
        ("ablations", {"trained": [*TRAINED, "train.lr=0.004"]}, {"ablation@train.lr=0.004"}),
        ("ablations", {"inferred": [*INFERRED, "segment.unit=group"]}, {"evaluate-inferred@segment.unit=group"}),
        ("ablations", {"untrained": ["clip", "maskclip", "sclip"]}, {"evaluate-untrained@sclip"}),
    ],
)
def test_a_changed_parameter_reruns_what_reads_it(project, section, values, expected):
    with changed(project, section, **values):
        assert stale(project) - {"figures"} == expected - {"figures"}
        assert ("figures" in stale(project)) == (section in ("ablations", "figures"))


@pytest.mark.parametrize(
    "file, expected",
    [
        ("ovseg/study/charts.py", set()),
        ("ovseg/study/report.py", set()),
        ("ovseg/methods/mining.py", TRAININGS),
        ("ovseg/methods/decoder.py", TRAININGS | EVALUATIONS),
        ("ovseg/segmentation/units.py", EVALUATIONS),
        ("ovseg/benchmarks/miou.py", EVALUATIONS),
        ("ovseg/clip/dense.py", {"encode"} | TRAININGS | EVALUATIONS),
        ("ovseg/world/scenes.py", {"prepare"}),
    ],
)
def test_changed_code_reruns_what_calls_it(project, file, expected):
    before = (project / file).read_bytes()
    try:
        (project / file).write_bytes(before + b"# changed\n")
        assert stale(project) == expected | {"figures"}
    finally:
        (project / file).write_bytes(before)


def test_a_line_added_trains_itself_alone_and_appears_in_report_and_charts(project):
    weights = {path: path.read_bytes() for path in (project / "models").rglob("decoder.safetensors")}
    with changed(project, "ablations", trained=[*TRAINED, "mgca.tau=0.1"]):
        printed = run(project, sys.executable, "-m", "ovseg.study.jobs", "--jobs", "1")
        started = re.findall(r"start +(\S+)", printed)
        assert set(started) == {"sources", "ablation@mgca.tau=0.1", "figures"}
        report = (project / "results/REPORT.md").read_text()
        assert "| mgca.tau = 0.1 " in report and "figures/mgca.tau.png" in report
        assert (project / "results/figures/mgca.tau.png").stat().st_size > 5000
    run(project, "dvc", "repro")
    assert all(path.read_bytes() == content for path, content in weights.items())


def test_a_benchmark_added_renders_nothing_and_encodes_itself_alone(project):
    kept = [*project.glob("data/prepared/scenes/*.tar"), *project.glob("data/features/train/*.npy")]
    before = {path: path.stat().st_mtime_ns for path in kept}  # of benchmarks DVC copies files that are links to each other
    calibration = {"shards": "data/prepared/scenes/calibration-*.tar", "label": "things.png", "classes": "data/prepared/scenes/things.txt"}
    with changed(project, "benchmarks", more=calibration):
        run(project, "dvc", "repro", "encode")
        assert {path: path.stat().st_mtime_ns for path in kept} == before and len(before) == 5
        progress = (project / "runs/encode.ipynb").read_text()
        assert "encode more" in progress and "encode things" not in progress and "encode images" in progress
        assert (project / "data/features/benchmarks/more/maskclip.npy").is_file()
        assert "train" not in stale(project) and "evaluate" in stale(project)  # all results are of the same benchmarks
    run(project, "dvc", "repro", "encode")
    assert not (project / "data/features/benchmarks/more").exists() and stale(project) == set()


def test_a_seed_added_repeats_no_training(project):
    seed = project / "models/mgca/seeds/0/training.json"
    before = seed.read_bytes()
    with changed(project, "train", seeds=2):
        assert "train" in stale(project)
        run(project, "dvc", "repro", "--single-item", "train")
        assert seed.read_bytes() == before  # which holds its seconds
        assert (seed.parents[1] / "1/training.json").is_file()


def test_bad_parameter_stops_before_any_stage_with_one_line(project):
    with changed(project, "mgca", alpha=4):
        output = run(project, "dvc", "repro", check=False)
    assert "params.yaml: mgca.alpha = 4: should be less than or equal to 1" in output
    assert "notebook.sh" not in output and "Traceback" not in output


def test_trained_segmenter_loads_from_anywhere_and_segments(project, monkeypatch, tmp_path):
    import numpy as np

    from ovseg import Segmenter

    monkeypatch.chdir(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    found = Segmenter.load(project / "models/mgca", device="cpu").segment(picture, ["car", "tree"], background=True)
    assert found.labels.shape == (90, 150) and found.scores.shape == (2, 90, 150)
    assert found.names == ("background", "car", "tree") and set(np.unique(found.labels)) <= {0, 1, 2}
