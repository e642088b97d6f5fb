"""`make repro JOBS=n`: `dvc repro`, with n runs of the study at a time. `python scripts/repro.py [n]`; default: a run a GPU, or a core.

DVC itself runs one stage after another. The pipeline has four levels: the data; their features, of pairs and of benchmarks; the runs,
NAME@LINE, independent of each other but for `inferred`, which needs the default run; the figures. Stages of a level are started as
`dvc repro --single-item`, each with its share of the cores and, if there are GPUs, one of them. Their output goes to runs/logs. After a
failure no other one starts.
"""

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ovseg import params

LOGS = Path("runs/logs")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
LOCK_WAIT = 120  # seconds for another DVC process to end, before any work


def visible_gpus():
    """GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def changed(*kinds):
    """Names of the stages of these kinds that have to run. Ends if another DVC process holds its lock for LOCK_WAIT seconds."""
    for attempt in itertools.count(1):
        done = subprocess.run(["dvc", "status", "--json"], capture_output=True, encoding="utf-8")
        if done.returncode == 0:
            return [name for name in json.loads(done.stdout) if name.split("@")[0] in kinds]
        if "acquire lock" not in done.stderr or attempt * 4 > LOCK_WAIT:  # DVC waits 3 s itself
            hint = "A full disk may leave it so: `git checkout dvc.lock` brings it back." if "dvc.lock" in done.stderr else ""
            sys.exit(done.stderr + hint)


def say(line):
    print(time.strftime("%H:%M:%S"), line, flush=True)


class Runner:
    """Runs stages side by side. jobs: how many at a time. gpus: from visible_gpus, one for each in turn; [] for none."""

    def __init__(self, jobs, gpus):
        self.jobs, self.failed, self.running, self.slots = jobs, [], set(), queue.Queue()
        for slot in range(jobs):
            # Waiting threads sleep instead of spinning: two processes with two spinning threads each would block two cores.
            share = {"OMP_NUM_THREADS": str(max(1, CORES // jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
            share = {} if os.environ.get("OVSEG_LAUNCH") else share  # other machines have their own cores
            self.slots.put(os.environ | share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus and jobs > 1 else {}))

    def run(self, name):
        """Run one stage with the environment of a free slot."""
        environment, log = self.slots.get(), LOGS / f"{name}.log"
        try:
            if self.failed:
                return
            say(f"start  {name}")
            started = time.perf_counter()
            with open(log, "wb") as file:
                command = ["dvc", "--wait-for-lock", "repro", "--single-item", name]
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
                self.running.add(process)
                code = process.wait()
                self.running.discard(process)
            if code and "stopped" in self.failed:
                return
            say(f"{'done  ' if code == 0 else 'FAILED'} {name}  {time.perf_counter() - started:.0f} s")
            if code:
                self.failed.append(name)
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                print("".join(lines[-15:]), f"(the end of {log})", flush=True)
        finally:
            self.slots.put(environment)

    def stop(self, number, frame):
        """On SIGTERM, end the running stages too."""
        self.failed.append("stopped")
        for process in self.running:
            process.terminate()
        sys.exit(128 + number)

    def run_all(self, names):
        """Run stages side by side, in this order. Ends the process if one of them fails."""
        if names:
            say(f"{len(names)} stages, {self.jobs} at a time")
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                list(pool.map(self.run, names))
            except KeyboardInterrupt:  # of which the running stages know, too
                self.failed.append("stopped")
                raise
        if self.failed:
            sys.exit(f"failed: {', '.join(self.failed)}. Run again to go on: finished stages are not repeated.")


def main():
    try:
        p = params.load()
    except params.ParamsError as error:
        sys.exit(f"{error}")
    gpus = [] if p.device == "cpu" or os.environ.get("OVSEG_LAUNCH") else visible_gpus()  # other machines have their own
    given = sys.argv[1] if len(sys.argv) > 1 else str(1 if p.train.processes > 1 else len(gpus) or CORES)
    if not given.isdigit() or given == "0":
        sys.exit(f"JOBS = {given}: must be a whole number from 1")
    if gpus and int(given) > 1 and p.train.processes > 1:
        sys.exit(f"JOBS = {given}: must be 1, because each run trains on {p.train.processes} GPUs (train.processes)")
    runner = Runner(int(given), gpus)
    signal.signal(signal.SIGTERM, runner.stop)
    LOGS.mkdir(parents=True, exist_ok=True)
    changed()
    if code := subprocess.run(["dvc", "repro", "prepare", "pretrain"]).returncode:  # what all runs share
        sys.exit(code)
    runner.run_all(changed("encode", "benchmarks"))
    runner.run_all(changed("run", "untrained", "retrieved"))
    runner.run_all(changed("inferred"))
    sys.exit(subprocess.run(["dvc", "repro"]).returncode)  # the figures


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped. Run again to go on: finished stages are not repeated.")
