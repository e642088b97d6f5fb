"""scripts/repro.py with a stand-in for dvc, and scripts/notebook.sh with one for srun."""

import importlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from threading import Timer, get_ident

import pytest
from tiny import ROOT, save


@pytest.fixture
def repro(tmp_path, monkeypatch):
    """scripts/repro.py as a module, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    Path("runs/logs").mkdir(parents=True)
    return importlib.import_module("repro")


def stand_in(name, script):
    """Put a shell script on the PATH of the fixture's folder."""
    path = Path("bin", name)
    save(path, f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def test_no_more_than_jobs_run_at_once_each_with_its_share(repro, monkeypatch):
    monkeypatch.setattr(repro, "CORES", 8)
    stand_in("dvc", 'touch "on-$4"; ls | grep -c "^on-" >> counts; sleep 0.3; rm "on-$4"; echo "$OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES"')
    names = [f"run@{letter}" for letter in "abcde"]
    repro.Runner(2, ["4", "6"]).run_all(names)
    assert max(int(line) for line in Path("counts").read_text().split()) == 2
    said = {(repro.LOGS / f"{name}.log").read_text() for name in names}
    assert said == {"4 4\n", "4 6\n"}


def test_after_a_failure_no_run_is_started_and_running_ones_end(repro, capsys):
    stand_in("dvc", 'echo "$4" >> begun; if [ "$4" = a ]; then sleep 0.2; echo "why a failed"; exit 3; fi; sleep 0.6; touch "ended-$4"')
    with pytest.raises(SystemExit, match="failed: a. Run again"):
        repro.Runner(2, []).run_all(["a", "b", "c", "d"])
    assert sorted(Path("begun").read_text().split()) == ["a", "b"] and Path("ended-b").exists()
    assert "FAILED a" in (printed := capsys.readouterr().out) and "why a failed" in printed


def test_an_interrupt_starts_no_other_run_and_reports_no_failure(repro, capsys):
    stand_in("dvc", 'echo "$4" >> begun; sleep 2; exit 1')
    Timer(0.3, signal.pthread_kill, (get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        repro.Runner(1, []).run_all(["a", "b"])
    assert Path("begun").read_text().split() == ["a"] and "FAILED" not in capsys.readouterr().out


def test_changed_stages_are_those_of_the_kinds_and_a_held_lock_ends_the_wait(repro, monkeypatch):
    stand_in("dvc", """echo '{"run@a": [], "untrained@clip": [], "sources": [], "inferred@x": []}'""")
    assert repro.changed("run", "untrained") == ["run@a", "untrained@clip"]
    stand_in("dvc", 'echo try >> tries; echo "ERROR: Unable to acquire lock" >&2; exit 1')
    monkeypatch.setattr(repro, "LOCK_WAIT", 8)
    with pytest.raises(SystemExit, match="Unable to acquire lock"):
        repro.changed()
    assert Path("tries").read_text().count("try") == 3


def test_a_notebooks_command_is_launched_by_the_prefix(repro, monkeypatch):
    stand_in("srun", 'echo "$@" > words; touch out.ipynb')
    monkeypatch.setenv("OVSEG_LAUNCH", "srun --gres=gpu:1 --cpus-per-task=8")
    subprocess.run(["bash", ROOT / "scripts/notebook.sh", "a.ipynb", "out.ipynb", "-r", "name", "mgca.k=0"], check=True)
    words = "--gres=gpu:1 --cpus-per-task=8 python scripts/execute.py a.ipynb out.ipynb -r name mgca.k=0\n"
    assert Path("words").read_text() == words


def test_make_and_quick_work_without_git_in_a_path_with_a_space(repro, tmp_path):
    def commands(target):
        made = ["make", "-n", "-C", folder, "-f", ROOT / "Makefile", target, "-o", "requirements.lock", "-o", "pyproject.toml"]
        return subprocess.run(made, check=True, capture_output=True, text=True).stdout.replace(".venv/bin/dvc", "echo dvc")

    folder, other = tmp_path / "a folder", tmp_path / "with git"
    for name in ("scripts", "notebooks", "ovseg", "paper", "models/clip"):
        (folder / name).mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", "results/pretrain.json", "results/other_processor.json", "params.yaml"):
        save(folder / name, "edited")
    assert f'JUPYTER_PATH="{folder}/scripts" voila' in commands("inspect")
    (line,) = [line for line in commands("repro").splitlines() if "no_scm" in line]
    (other / ".git").mkdir(parents=True)
    said = [subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True).stdout for cwd in (folder, other)]
    assert said == ["dvc config --local core.no_scm true\n", ""]
    for name, script in {"git": "exit 128", "dvc": "true", "python": 'echo "$PYTHONUTF8 $@" >> said; cp params.yaml seen'}.items():
        stand_in(name, script)
    shutil.copy(ROOT / "scripts/quick.sh", folder / "scripts")
    subprocess.run([folder / "scripts/quick.sh", "2"], check=True)
    assert (folder / "quick/seen").read_text() == "edited"  # there is no version in git to take
    assert (folder / "quick/said").read_text() == "1 -m ovseg.params ../presets/quick.yaml\n1 scripts/repro.py 2\n"
