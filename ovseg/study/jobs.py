"""Run the study's stages in parallel: `python -m ovseg.study.jobs [--jobs N] [--part I/N] [STAGE ...]`.

`dvc repro` runs one stage after another. This command starts a separate `dvc repro --single-item` for each stage whose inputs are ready,
N at a time. Each gets a share of the cores and, if there are GPUs, one of them. Results are the same. DVC locks dvc.lock and, on one
machine, the files of each stage. Machines that share the folder use `--part I/N` to avoid each other: it takes every Nth line of the
ablations, starting at line I (from 0). The output of a stage goes to runs/logs/STAGE.log.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx

from .. import params

LOGS = Path("runs/logs")


def plan_stages(graph, changed, targets=(), part=None):
    """Stages to run, {name: stages to run before it}, in topological order.

    graph: edges from each stage to its dependencies. changed: names of stages that DVC reports as changed; stages downstream of them are
    included. targets: only these and their dependencies; all if empty. part: (i, n), only the i-th of every n matrix lines, without the
    stages that they share. Raises ValueError for an unknown target.
    """
    unknown = [name for name in targets if name not in graph]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such stage; allowed are {', '.join(sorted(graph))}")
    wanted = set(graph) if not targets else set(targets).union(*(nx.descendants(graph, name) for name in targets))
    if part is not None:
        lines = sorted({name.split("@")[1] for name in wanted if "@" in name})
        wanted = {name for name in wanted if "@" in name and lines.index(name.split("@")[1]) % part[1] == part[0]}
    affected = set(changed).union(*(nx.ancestors(graph, name) for name in changed if name in graph))
    order = [name for name in reversed(list(nx.lexicographical_topological_sort(graph))) if name in wanted & affected]
    return {name: set(graph.successors(name)) & set(order) for name in order}


def cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device):
    """GPUs that stages may use, as CUDA_VISIBLE_DEVICES names them. device: params' device."""
    if device == "cpu":
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(torch.cuda.device_count())] if given is None else [name for name in given.split(",") if name]


def run_stages(stages, jobs, command=("dvc", "--wait-for-lock", "repro", "--single-item"), gpus=()):
    """Run the stages of a plan, `jobs` at a time. Returns the names of failed stages. gpus: from visible_gpus, assigned in turn.

    After a failure no new stage starts; running stages continue to their end, so that no work is lost.
    """
    waiting, running, done, failed, total = dict(stages), {}, set(), [], len(stages)
    LOGS.mkdir(parents=True, exist_ok=True)
    slots = set(range(jobs))
    while running or (waiting and not failed):
        ready = [name for name, before in waiting.items() if before <= done] if not failed else []
        share = max(1, cores() // min(jobs, max(1, len(ready) + len(running))))
        for name in ready[: len(slots)]:
            del waiting[name]
            slot = min(slots)
            slots.remove(slot)
            # Waiting threads sleep instead of spinning: two processes with two spinning threads each would block two cores.
            env = os.environ | {"OMP_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
            log = LOGS / f"{name}.log"
            with open(log, "wb") as file:
                process = subprocess.Popen([*command, name], stdout=file, stderr=subprocess.STDOUT, env=env)
            running[name] = (process, slot, log, time.perf_counter())
            say(f"start  {name}  ({share} threads)")
        time.sleep(0.1)
        for name, (process, slot, log, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            slots.add(slot)
            seconds = f"{time.perf_counter() - started:.0f} s"
            if process.returncode == 0:
                done.add(name)
                say(f"done   {name}  {seconds}  [{len(done)}/{total}]")
            else:
                failed.append(name)
                say(f"FAILED {name}  {seconds}; the end of {log}:")
                print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:]), flush=True)
                if running:
                    say(f"waiting for {', '.join(running)}; no other stage is started")
    return failed


def say(line):
    print(time.strftime("%H:%M:%S"), line, flush=True)


def _part(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 0 to N-1")
    return int(match[1]), int(match[2])


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ovseg.study.jobs", description="Run the study's stages side by side.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="these and what they depend on; none: all")
    parser.add_argument("--jobs", type=int, help="stages at a time; by default as many as there are GPUs, or else cores")
    parser.add_argument("--part", type=_part, help="I/N: this worker's part of the ablations, for several workers on a shared folder")
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    from dvc.repo import Repo  # takes a second to import

    try:
        params.enter_project()
        p = params.load()
        repo = Repo(_wait_for_lock=True)
        graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
        stages = plan_stages(graph, set(repo.status()), options.stages, options.part)
        if "sources" in stages:  # it often leaves the files that all stages depend on unchanged
            if run_stages({"sources": set()}, 1):
                sys.exit("failed: sources")
            stages = plan_stages(graph, set(repo.status()), options.stages, options.part)
    except ValueError as error:
        sys.exit(f"{error}")
    gpus = visible_gpus(p.device)
    jobs = options.jobs or len(gpus) or cores()
    if gpus and jobs > 1 and p.train.processes > 1:
        sys.exit(f"train.processes = {p.train.processes}: stages side by side have one GPU each; use `dvc repro`, or --jobs 1")
    say(f"{len(stages)} stages to run, {jobs} at a time" if stages else "nothing to do: all is up to date")
    failed = run_stages(stages, jobs, gpus=gpus if jobs > 1 else ())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}. Run again to go on: finished stages are not repeated.")


if __name__ == "__main__":
    main()
