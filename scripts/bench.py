"""Time, peak memory and distance from a lower bound: `python scripts/bench.py [--device cuda] [--json FILE] [--figure FILE]`.

Cases are those of bench_cases.py, each in a process of its own. A case's floor is the larger of two times: of the
multiply-adds that no exact method avoids (of the losses, S once) at the rate of a large matmul in the same precision on
the same device, and of the bytes that must be read and written at the rate of a large copy.
"""

import argparse
import json
import multiprocessing
import platform
import re
import sys
import time
from pathlib import Path

import torch
from bench_cases import cases

from ovseg import params


def timed(function, device, repeats=3):
    """The fastest of some runs, in seconds, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def resident(what):
    """Bytes of this process' memory: "VmRSS" now, "VmHWM" at its highest since `peak_memory` reset it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024


def peak_memory(function, device):
    """Bytes that a run takes beyond what is held before it. On a CPU from Linux' /proc; NaN where there is none."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        function()
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM to what is held now
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def rates(device):
    """{"float32", "bfloat16": multiply-adds a second of a large matmul; "copy": bytes a second, read and written}."""
    size = 8192 if device == "cuda" else 2048
    found = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, name)) for _ in range(2))
        found[name] = size**3 / timed(lambda a=a, b=b: a @ b, device)
    source = torch.empty(1 << 26, device=device)
    target = torch.ones_like(source)
    found["copy"] = 2 * source.nbytes / timed(lambda: source.copy_(target), device)
    return found


def _in_process(connection, function, device, arguments):
    try:
        case = function(device, *arguments)
        memory = peak_memory(case.run, device) - case.held
        measured = {"seconds": timed(case.run, device), "memory": memory, "macs": case.macs, "bytes": case.bytes}
        connection.send(measured)
    except (torch.OutOfMemoryError, MemoryError):
        connection.send({"error": "out of memory"})


def measure(device, progress=print):
    """Run every case. Returns {"machine", "torch", "rates", "cases": [{"group", "name", "seconds", "memory", "floor", "ratio"}]}.

    A case that fails has "error" instead of numbers. progress: called with each case as a line of the table.
    """
    context = multiprocessing.get_context("spawn")
    speed, rows = rates(device), []
    for group, name, function, arguments in cases(device):
        here, there = context.Pipe()
        process = context.Process(target=_in_process, args=(there, function, device, arguments))
        process.start()
        there.close()
        try:
            found = here.recv()
        except EOFError:
            process.join()
            found = {"error": f"ended with exit code {process.exitcode}"}  # -9 is Linux short of memory
        process.join()
        row = {"group": group, "name": name} | found
        if "macs" in row:
            arithmetic = sum(count / speed[precision] for precision, count in row.pop("macs").items())
            row["floor"] = max(arithmetic, row.pop("bytes") / speed["copy"])
            row["ratio"] = row["seconds"] / row["floor"]
        rows.append(row)
        numbers = "{seconds:9.3f} {MiB:6.0f} MiB {floor:9.3f} {ratio:6.1f}"
        progress(f"{group:24} {name:32} " + (row.get("error") or numbers.format(MiB=row["memory"] / 2**20, **row)))
    kind = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores, {platform.machine()}"
    return {"machine": kind, "torch": torch.__version__, "rates": speed, "cases": rows}


def growth(found):
    """A figure of how cost grows: seconds and extra memory over B, L, classes and image size. found: of measure."""
    import matplotlib.pyplot as plt  # these here: each case's process would import them
    import pandas as pd
    import seaborn as sns
    from matplotlib import ticker

    sns.set_theme(style="whitegrid", palette="colorblind")
    rows = pd.DataFrame([row for row in found["cases"] if "error" not in row and " over " in row["group"]])
    rows[["which", "setting"]] = rows["name"].str.split(", ", n=1, expand=True)
    rows["MiB"] = rows["memory"] / 2**20
    groups = rows["group"].unique()
    figure, axes = plt.subplots(2, len(groups), squeeze=False, figsize=(3.4 * len(groups), 5.4), layout="constrained")
    for column, group in zip(axes.T, groups, strict=True):
        for axis, name in zip(column, ("seconds", "MiB"), strict=True):
            sns.pointplot(rows[rows["group"] == group], x="setting", y=name, hue="which", ax=axis, legend=name == "seconds")
            axis.set(yscale="log", title=group if name == "seconds" else "", xlabel="")
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(ticker.NullFormatter())
            axis.tick_params(axis="x", rotation=20)
    return figure


def main():
    parser = argparse.ArgumentParser(description="Time, peak memory and distance from the floor.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--figure", type=Path, help="draw how cost grows here")
    options = parser.parse_args()
    try:
        params.device(options.device)
    except params.ParamsError as error:
        sys.exit(f"{error}")
    print(f"{'':24} {'':32} {'seconds':>9} {'memory':>10} {'floor':>9} {'ratio':>6}")
    found = measure(options.device)
    speed = {name: f"{rate / 1e9:.0f}" for name, rate in found["rates"].items()}
    print(f"floor from float32 {speed['float32']} GMAC/s, bfloat16 {speed['bfloat16']} GMAC/s; copy {speed['copy']} GB/s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        growth(found).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
