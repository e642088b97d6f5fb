"""Stages side by side: which are run, in which order, and what happens when one fails."""

import networkx as nx
import pytest

from ovseg.study import jobs

EDGES = [("encode", "prepare"), ("train", "encode"), ("evaluate", "train"), ("figures", "evaluate")]
EDGES += [(f"train@{line}", "encode") for line in "abcde"] + [(f"evaluate@{line}", f"train@{line}") for line in "abcde"]
EDGES += [("figures", f"evaluate@{line}") for line in "abcde"]
GRAPH = nx.DiGraph(EDGES)  # from each stage to those it depends on


def test_every_stage_comes_after_those_it_depends_on():
    plan = jobs.plan_stages(GRAPH, {"prepare"})
    assert set(plan) == set(GRAPH)
    order = list(plan)
    for stage, needed in plan.items():
        assert needed == set(GRAPH.successors(stage)) and all(order.index(one) < order.index(stage) for one in needed)


def test_only_what_changed_and_what_follows_is_run():
    assert set(jobs.plan_stages(GRAPH, {"train@a"})) == {"train@a", "evaluate@a", "figures"}
    assert jobs.plan_stages(GRAPH, {"evaluate"}) == {"evaluate": set(), "figures": {"evaluate"}}
    assert jobs.plan_stages(GRAPH, set()) == {}


def test_targets_bring_what_they_depend_on_and_nothing_else():
    assert set(jobs.plan_stages(GRAPH, {"prepare"}, ["evaluate"])) == {"prepare", "encode", "train", "evaluate"}
    with pytest.raises(ValueError, match="evaluat: no such stage; allowed are"):
        jobs.plan_stages(GRAPH, {"prepare"}, ["evaluat"])


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_parts_hold_each_line_once_and_nothing_that_lines_share(workers):
    parts = [jobs.plan_stages(GRAPH, set(GRAPH), part=(worker, workers)) for worker in range(workers)]
    stages = [stage for part in parts for stage in part]
    assert sorted(stages) == sorted(stage for stage in GRAPH if "@" in stage)
    for part in parts:
        assert {stage.split("@")[1] for stage in part} == {s.split("@")[1] for s in part if s.startswith("train@")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(script):
    """What stands for `dvc repro --single-item`: a shell script whose $1 is the stage's name."""
    return ("bash", "-c", script, "bash")


def test_no_more_than_jobs_run_at_once_and_all_of_them_do(folder):
    stages = jobs.plan_stages(GRAPH, {"prepare"})
    script = 'touch "on-$1"; ls | grep -c "^on-" >> counts; sleep 0.3; rm "on-$1"; echo "$1" >> order; echo "said by $1"'
    assert jobs.run_stages(stages, 3, command(script)) == []
    order = (folder / "order").read_text().split()
    assert sorted(order) == sorted(GRAPH)
    assert all(order.index(needed) < order.index(stage) for stage in stages for needed in stages[stage])
    counts = [int(line) for line in (folder / "counts").read_text().split()]
    assert max(counts) == 3
    assert (folder / "runs/logs/train@a.log").read_text() == "said by train@a\n"


def test_after_a_failure_no_stage_is_started_and_those_that_run_end(folder, capsys):
    stages = {"a": set(), "b": set(), "c": set(), "d": {"a"}}
    script = 'echo "$1" >> begun; if [ "$1" = a ]; then sleep 0.2; echo "why a failed"; exit 3; fi; sleep 1; touch "ended-$1"'
    assert jobs.run_stages(stages, 2, command(script)) == ["a"]
    assert sorted((folder / "begun").read_text().split()) == ["a", "b"] and (folder / "ended-b").exists()
    printed = capsys.readouterr().out
    assert "FAILED a" in printed and "why a failed" in printed


def test_cores_are_shared_and_each_slot_has_its_gpu(folder, monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    script = 'echo "$OMP_NUM_THREADS $OMP_WAIT_POLICY $CUDA_VISIBLE_DEVICES" > "$1"; sleep 0.5'
    assert jobs.run_stages({"a": set(), "b": set(), "c": {"a", "b"}}, 2, command(script), gpus=["4", "6"]) == []
    assert {(folder / name).read_text() for name in "ab"} == {"4 PASSIVE 4\n", "4 PASSIVE 6\n"}
    assert (folder / "c").read_text().startswith("8 PASSIVE")  # alone, it has all


@pytest.mark.parametrize("part", ["2/2", "1", "a/b"])
def test_a_bad_part_is_refused(part, capsys):
    with pytest.raises(SystemExit):
        jobs.main(["--part", part])
    assert "I/N" in capsys.readouterr().err
