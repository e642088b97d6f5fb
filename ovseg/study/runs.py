"""The runs of a study, and how one is trained and evaluated.

    default     params.yaml as it is                                          models/mgca
    trained     a line of ablations.trained: trained and evaluated with it    models/trained/LINE
    inferred    a line of ablations.inferred: the default run's decoders, evaluated with its changes
    untrained   a dense mode of ablations.untrained: CLIP's features alone

Results are written to results/runs/mgca.json, results/runs/trained/LINE.json and so on. Each training of a run (seeds 0 to
train.seeds - 1) has a subfolder of the model's folder: seeds/0 and so on. Under torchrun, `python -m ovseg.study.runs [--change LINE]`
trains the default run, or that line, over all processes.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import params
from ..benchmarks import datasets, evaluation
from ..benchmarks.miou import mean
from ..data.files import write_whole
from ..methods import supervised
from ..segmentation.segmenter import Segmenter
from ..segmentation.windows import BACKGROUND
from ..training import distributed, loop
from ..training.decoder import Decoder
from ..values import METHODS

DEFAULT = "mgca"
PACKAGES = ("ovseg", "torch", "open_clip_torch", "numpy", "pillow")  # packages whose versions a result records
SECTIONS = ("clip", *(name for name in METHODS if name in params.Params.model_fields), "train", "segment", "evaluate")  # in a result


@dataclass(frozen=True)
class Run:
    """kind: default, trained, inferred or untrained. change: its line of params.yaml, "" for the default run."""

    kind: str = "default"
    change: str = ""

    @property
    def name(self):
        return DEFAULT if self.kind == "default" else f"{self.kind}/{self.change}"

    @property
    def model(self):
        """The folder of the run's decoders."""
        return Path("models") / (self.name if self.kind == "trained" else DEFAULT)

    @property
    def result(self):
        return Path("results/runs") / f"{self.name}.json"

    @property
    def changes(self):
        """What the run changes in params.yaml: {"mgca.k": 0.1}."""
        return {"clip.dense": self.change} if self.kind == "untrained" else params.parse_change(self.change)

    def params(self):
        """params.yaml with its changes."""
        return params.load(self.changes)


def all_runs(ablations):
    """Every run of the study. ablations: params' Ablations."""
    lists = {kind: getattr(ablations, kind) for kind in ("untrained", "trained", "inferred")}
    return [Run(), *(Run(kind, change) for kind, changes in lists.items() for change in changes)]


def train_run(run, device):
    """Train a run's decoder once per seed; finished trainings are not repeated. device: torch.device."""
    p, group = run.params(), distributed.joined()
    if group.size > 1:
        p = p.model_copy(update={"train": p.train.model_copy(update={"processes": group.size})})
    else:
        params.processes(p.train.processes, device)
    source = None
    if p.train.method == "supervised":
        name = p.supervised.labels
        benchmark = datasets.open_benchmark(name, p.benchmarks[name])
        source = supervised.Source(benchmark.label, benchmark.background, f"data/features/benchmarks/{name}/classes.npy")
    for seed in range(p.train.seeds):
        trained = loop.train_into(run.model / "seeds" / str(seed), seed, p, source, device)
        if group.rank == 0:
            print(f"seed {seed}: {'trained' if trained else 'was trained before, and nothing that it depends on has changed'}")


def open_segmenters(run, device):
    """(suite, {seed: Segmenter}) of a run, for evaluation.evaluate. The seed of an untrained run is None."""
    p = run.params()
    suite, clip = evaluation.open_suite(p), evaluation.open_clip(p.clip, device)
    if run.kind == "untrained":
        return suite, {None: Segmenter(clip, Decoder(suite[0].classes.shape[1]).to(device), p.segment)}
    folders = {seed: run.model / "seeds" / str(seed) for seed in range(p.train.seeds)}
    return suite, {seed: Segmenter.of_training(folder, clip, p.segment, device) for seed, folder in folders.items()}


def units_of(run, p):
    """The semantic units a run is evaluated with; its own (segment.unit) comes first."""
    others = {"default": p.evaluate.units, "untrained": p.evaluate.units, "trained": ["pixel"], "inferred": []}[run.kind]
    return list(dict.fromkeys([p.segment.unit, *others]))


def evaluate_run(run, suite, segmenters):
    """Evaluate a run's segmenters with each of its units, and write its result and segmenter.json. Returns the result.

    suite, segmenters: from `open_segmenters`.
    """
    p, started = run.params(), time.perf_counter()
    variants = {(seed, unit): s.with_unit(unit) for seed, s in segmenters.items() for unit in units_of(run, p)}
    found = evaluation.evaluate(variants, suite)
    seconds = round(time.perf_counter() - started, 1)
    trainings = [json.loads((run.model / "seeds" / str(seed) / "training.json").read_text()) for seed in segmenters if seed is not None]
    if run.kind in ("default", "trained"):  # what Segmenter.load needs besides the decoders
        segmenters[0].save_settings(run.model, p.clip)
    spent = {"train": sum(t["seconds"] for t in trainings), "evaluate": seconds}
    result = make_result(run, p, found, spent, trainings[0]["weights"] if trainings else 0)
    write_result(result, run.result)
    return result


def make_result(run, p, found, seconds, weights=0):
    """The result of a run, for results/runs.

    p: its Params. found: {benchmark: {(seed, unit): {class: IoU}}}, from evaluation.evaluate. Returns a dict:

    run, kind   its name and kind
    changes     what it changes in params.yaml, [["mgca.k", 0.1]]; identifies runs in tables
    miou        {benchmark: {unit: percent}}, mean over seeds; `dvc metrics show` prints this and `seconds`
    seconds     {"train": ..., "evaluate": ...}, over all seeds; the only values that differ when a study is repeated on one machine
    thresholds  {benchmark: softmax score below which a pixel is background}, for benchmarks with background
    classes     [[benchmark, SHA-256 of its class names, one a line], ...]: names change mIoU, so compare only results with equal names
    versions    [[package, version], ...], Python first
    weights     number of trained weights; 0 if nothing is trained
    parameters  [["mgca.alpha", 0.4], ...]: all values of clip, the methods, train, segment and evaluate; DVC would read a dict as metrics
    seeds       [{"seed", "miou": {benchmark: {unit: percent}}, "iou": {benchmark: {unit: {class: percent or null}}}}, ...]; the
                seed of an untrained run is null
    """
    units = list(dict.fromkeys(unit for variants in found.values() for _, unit in variants))
    seeds = []
    for seed in dict.fromkeys(seed for variants in found.values() for seed, _ in variants):
        iou = {name: {unit: variants[seed, unit] for unit in units} for name, variants in found.items()}
        miou = {name: {unit: mean(by_class) for unit, by_class in by_unit.items()} for name, by_unit in iou.items()}
        seeds.append({"seed": seed, "miou": miou, "iou": iou})
    return {
        "run": run.name,
        "kind": run.kind,
        "changes": list(run.changes.items()),
        "miou": {name: {unit: sum(s["miou"][name][unit] for s in seeds) / len(seeds) for unit in units} for name in found},
        "thresholds": thresholds(p, [name for name, by_unit in seeds[0]["iou"].items() if BACKGROUND in next(iter(by_unit.values()))]),
        "classes": [[name, digest(next(iter(by_unit.values())))] for name, by_unit in seeds[0]["iou"].items()],
        "versions": [["python", platform.python_version()], *([name, metadata.version(name)] for name in PACKAGES)],
        "seconds": seconds,
        "weights": weights,
        "parameters": parameters(p),
        "seeds": seeds,
    }


def digest(names):
    """SHA-256 of class names, one a line, in hex."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def parameters(p):
    """The parameters that a result records, [["mgca.alpha", 0.4], ...]. p: Params of a run."""
    return [list(item) for item in params.flatten({name: getattr(p, name) for name in SECTIONS}).items()]


def thresholds(p, benchmarks):
    """{benchmark: its background threshold}. benchmarks: names of benchmarks with background."""
    return {name: p.evaluate.thresholds.get(name, p.segment.threshold) for name in benchmarks}


def write_result(result, path):
    """Write a result as JSON, atomically."""
    write_whole(path, lambda part: part.write_text(json.dumps(result, indent=1) + "\n"))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="torchrun ... -m ovseg.study.runs", description="Train a run over all processes of torchrun.")
    parser.add_argument("--change", default="", help="a line of ablations.trained; none: the default run")
    run = Run("trained", change) if (change := parser.parse_args(arguments).change) else Run()
    try:
        params.enter_project()
        distributed.in_group(train_run, run, params.device(run.params().device))
    except params.ParamsError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
