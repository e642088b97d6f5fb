"""Training and evaluating a run of the study (params.Run): its decoders are in models/NAME/seeds/0 and so on, its result is
results/runs/NAME.json. Under torchrun, `python -m ovseg.study.runs [--run NAME]` trains a run over all processes."""

import argparse
import functools
import hashlib
import json
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from .. import params
from ..benchmarks import datasets, evaluation
from ..benchmarks.miou import mean
from ..data.files import digest, syntax, write_json
from ..methods import supervised
from ..segmentation import reco
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import BACKGROUND
from ..training import distributed, loop
from ..training.decoder import Decoder
from .results import DENSE_TITLES, mean_std

PACKAGES = ("ovseg", "torch", "open_clip_torch", "numpy", "pillow")  # packages whose versions a result records
SECTIONS = ("clip", *params.METHODS, "train", "cocu", "segment", "reco", "evaluate")  # of the parameters that a result records


def train_run(run, device):
    """Train a run's decoder once per seed; finished trainings are kept. run: params.Run. device: torch.device."""
    p, group, labels_of = run.params, distributed.joined(), None
    if group.size > 1:
        p = p.model_copy(update={"train": p.train.model_copy(update={"processes": group.size})})
    elif device.type == "cuda":
        params.device("cuda", p.train.processes)
    if p.train.method == "supervised":
        name = p.supervised.labels
        benchmark = datasets.open_benchmark(name, p.benchmarks[name])
        classes = evaluation.open_classes(benchmark, "mean")
        labels_of = functools.partial(supervised.read_labels, benchmark.label, benchmark.background, classes)
    for seed in range(p.train.seeds):
        trained = loop.train_into(run.model / "seeds" / str(seed), seed, p, labels_of, device)
        if group.rank == 0:
            print(f"seed {seed}: {'trained' if trained else 'kept: it was trained before with the same parameters, code and data'}")
    for other in (run.model / "seeds").iterdir() if group.rank == 0 else ():
        if int(other.name) >= p.train.seeds:  # of an earlier train.seeds, and maybe of other parameters
            shutil.rmtree(other)


def open_segmenters(run, device):
    """(suite, {seed: Segmenter}) of a run, for evaluation.evaluate. The seed of an untrained run is None."""
    p = run.params
    suite, clip = evaluation.open_suite(p), evaluation.open_clip(p.clip, device)
    if run.kind == "untrained":
        refer = reco.reader(p.reco.pictures) if run.name == "reco" else None
        return suite, {None: Segmenter(clip, Decoder(suite[0].classes.shape[-1]).to(device), p.segment, refer=refer)}
    folders = {seed: run.model / "seeds" / str(seed) for seed in range(p.train.seeds)}
    return suite, {seed: Segmenter.of_training(folder, clip, p.segment, device) for seed, folder in folders.items()}


def units_of(run):
    """The semantic units a run is evaluated with; its own (segment.unit) comes first."""
    several = run.kind == "untrained" or run.name == params.DEFAULT
    others = run.params.evaluate.units if several else ["pixel"] if run.kind == "trained" else []
    return list(dict.fromkeys([run.params.segment.unit, *others]))


def evaluate_run(run, suite, segmenters):
    """Evaluate a run's segmenters with each of its units. Writes its result and, for a trained run, what its model's folder needs to be
    loaded and published: segmenter.json and result.json. Returns the result. suite, segmenters: from `open_segmenters`."""
    p = run.params
    device = next(next(iter(segmenters.values())).decoder.parameters()).device
    iou, seconds = evaluate_suite(run, (suite, segmenters), device)
    files = [run.model / "seeds" / str(seed) / "training.json" for seed in segmenters if seed is not None]
    trainings = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    spent = {"train": round(sum(t["seconds"] for t in trainings), 1), "evaluate": round(seconds, 1)}
    result = make_result(run, iou, spent, trainings[0]["weights"] if trainings else 0)
    write_json(run.result, result)
    if run.kind == "trained":
        segmenters[0].save_settings(run.model, p.clip)
        prepared = json.loads(Path("results/prepare.json").read_text(encoding="utf-8"))
        counts = {"pairs": prepared["pairs"], "captions": prepared["captions"], "rendered": p.data.shards is None}
        write_json(run.model / "result.json", result | {"data": counts})
    return result


def evaluate_suite(run, opened, device):
    """Evaluate a run by each unit: ({benchmark: {(seed, unit): {class: IoU}}}, seconds). opened: from `open_segmenters`; None opens them.

    What a benchmark gives is kept in runs/evaluations until something that it depends on changes: an interrupted evaluation goes on, and a
    new benchmark is evaluated alone. Uses train.processes processes: those of the current group, which all call this, or else new ones."""
    suite, segmenters = opened or open_segmenters(run, device)
    variants = {(seed, unit): s.with_unit(unit) for seed, s in segmenters.items() for unit in units_of(run)}
    world, train, depends, kept = distributed.joined(), run.params.train, _depends(run, segmenters, device), {}
    files = {encoded.benchmark.name: Path("runs/evaluations") / run.name / f"{encoded.benchmark.name}.json" for encoded in suite}
    for encoded, (name, file) in zip(suite, files.items(), strict=True):
        mark = digest([depends, encoded.made_with, encoded.threshold])
        about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        kept[name] = about if about.get("made_with") == mark else {"made_with": mark}
    missing = [encoded for encoded in suite if "iou" not in kept[encoded.benchmark.name]]
    processes = train.processes if device.type == "cpu" else min(train.processes, torch.cuda.device_count())
    if missing and processes > world.size:
        return distributed.launch(processes, train.timeout_minutes, evaluate_suite, run, None, device)
    for group in evaluation.by_pictures(missing):
        started = time.perf_counter()
        for name, ious in evaluation.evaluate(variants, group).items():
            kept[name] |= {"seconds": (time.perf_counter() - started) / len(group), "iou": list(ious.values())}
            if world.rank == 0:
                write_json(files[name], kept[name])
    return {name: dict(zip(variants, kept[name]["iou"], strict=True)) for name in kept}, sum(about["seconds"] for about in kept.values())


def _depends(run, segmenters, device):
    """All that a run's evaluation depends on but the benchmark, as plain values: parameters, decoders, device, packages, code."""
    p, root = run.params, Path(params.__file__).parent
    weights = [file for seed in segmenters for file in sorted(run.model.glob(f"seeds/{seed}/*.safetensors"))]
    folders = ("segmentation", "benchmarks", *(() if p.clip.cache_images else ("clip", "data")))
    files = [root / "training/decoder.py", root / "methods/groupvit.py", *(file for name in folders for file in root.glob(f"{name}/*.py"))]
    values = [p.clip.model_dump(exclude={"batch"}), p.segment.model_dump(), units_of(run), list(segmenters), device.type]
    values += [metadata.version(name) for name in PACKAGES[1:]]
    if run.name == "reco":
        made = [Path("data/features/train") / name for name in ("images.json", "pairs.json")]
        values += [p.reco.model_dump(), *(file.read_text(encoding="utf-8") for file in made)]
    return [*values, [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights], [syntax(file) for file in sorted(files)]]


def make_result(run, iou, seconds, weights=0):
    """The result of a run, for results/runs.

    run: params.Run. iou: {benchmark: {(seed, unit): {class: IoU}}}, from evaluation.evaluate. seconds: {"train": ..., "evaluate": ...},
    the only values that differ when a study is repeated on one machine. weights: number of trained weights. Returns the dict that
    docs/ablations.md describes; what is no metric is in lists of pairs, for DVC would read a dict as metrics."""
    p = run.params
    units = list(dict.fromkeys(unit for variants in iou.values() for _, unit in variants))
    seeds = []
    for seed in dict.fromkeys(seed for variants in iou.values() for seed, _ in variants):
        of_seed = {name: {unit: variants[seed, unit] for unit in units} for name, variants in iou.items()}
        miou = {name: {unit: mean(by_class) for unit, by_class in by_unit.items()} for name, by_unit in of_seed.items()}
        seeds.append({"seed": seed, "miou": miou, "iou": of_seed})
    classes = {name: list(next(iter(variants.values()))) for name, variants in iou.items()}
    with_background = [name for name, names in classes.items() if BACKGROUND in names]
    return {
        "run": run.name,
        "kind": run.kind,
        "changes": list(run.changes.items()),
        "miou": {name: {unit: sum(s["miou"][name][unit] for s in seeds) / len(seeds) for unit in units} for name in iou},
        "thresholds": {name: p.evaluate.thresholds.get(name, p.segment.threshold) for name in with_background},
        "classes": [[name, hashlib.sha256("\n".join(names).encode()).hexdigest()] for name, names in classes.items()],
        "versions": [["python", platform.python_version()], *([name, metadata.version(name)] for name in PACKAGES)],
        "seconds": seconds,
        "weights": weights,
        "parameters": parameters(p),
        "seeds": seeds,
    }


def parameters(p):
    """The parameters that a result records, [["mgca.alpha", 0.4], ...]. p: Params of a run."""
    return [list(item) for item in params.flatten({name: getattr(p, name) for name in SECTIONS}).items()]


def heading(run, default):
    """What a run is, as Markdown: its name and what it changes in the default run. run, default: params.Run."""
    if run.kind == "untrained":
        what = f"CLIP's dense features as {DENSE_TITLES[run.name]} reads them, without training"
    else:
        before = dict(map(tuple, parameters(default.params)))
        changes = ", ".join(f"`{key}` from {before[key]} to {value}" for key, value in run.changes.items())
        what = f"changes {changes}" if changes else "`params.yaml` as it is"
        what += "; the default run's decoders" if run.kind == "inferred" else f"; seeds 0 to {run.params.train.seeds - 1}"
    return f"**Run `{run.name}`**: {what}. Units: {', '.join(units_of(run))} (the first is its own)."


def beside(result, others):
    """mIoU of a result next to others, in percent, mean ± standard deviation over seeds (number of seeds): a DataFrame of texts.

    others: {title: params.Run}. A dash stands for a run without a result of its current parameters: no stage waits for the others. Each is
    shown with the same unit if it has it, otherwise with its own, which is then named."""
    rows = []
    for benchmark, unit in ((benchmark, unit) for benchmark, by_unit in result["miou"].items() for unit in by_unit):
        row = {"benchmark": benchmark, "unit": unit, "this run": _spread(result, benchmark, unit)}
        for title, run in others.items():
            other = json.loads(run.result.read_text(encoding="utf-8")) if run.result.is_file() else {}
            row |= {title: "–", f"this - {title}": "–"}
            if benchmark in other.get("miou", {}) and other["parameters"] == json.loads(json.dumps(parameters(run.params))):
                by = unit if unit in other["miou"][benchmark] else run.params.segment.unit
                difference = result["miou"][benchmark][unit] - other["miou"][benchmark][by]
                row[title] = _spread(other, benchmark, by) + ("" if by == unit else f", by {by}")
                row[f"this - {title}"] = f"{difference:+.1f}"
        rows.append(row)
    return pd.DataFrame(rows).set_index(["benchmark", "unit"])


def by_class(result):
    """IoU of each class, percent, mean over seeds: a DataFrame with columns (benchmark, unit), NaN for classes without an IoU."""
    columns = {}
    for benchmark, by_unit in result["miou"].items():
        for unit in by_unit:
            columns[benchmark, unit] = pd.DataFrame([seed["iou"][benchmark][unit] for seed in result["seeds"]], dtype=float).mean()
    return pd.DataFrame(columns)


def _spread(result, benchmark, unit):
    return mean_std(pd.Series([seed["miou"][benchmark][unit] for seed in result["seeds"]], dtype=float))


def main():
    parser = argparse.ArgumentParser(prog="torchrun ... -m ovseg.study.runs", description="Train a run over all processes of torchrun.")
    parser.add_argument("--run", default=params.DEFAULT, help="default, or a line of ablations.trained")
    name = parser.parse_args().run
    try:
        params.enter_project()
        runs = {name: run for name, run in params.load_runs().items() if run.kind == "trained"}
        if name not in runs:
            raise params.ParamsError(f"--run {name}: must be one of {', '.join(runs)}")
        distributed.in_group(runs[name].params.train.timeout_minutes, train_run, runs[name], params.device(runs[name].params.device))
    except params.ParamsError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
