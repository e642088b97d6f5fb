"""All results of a study as one table, with lookups. runs.make_result describes a single result."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..benchmarks.datasets import BACKGROUND

DEFAULT = "default"  # the name of the run without changes
CHOSEN = {"train.method", "train.texts", "simseg.select"}  # what tells methods apart
OWN = ("train.lr", "segment.unit", "segment.threshold")  # parameters that each method may tune for itself in a comparison
GROUPS = ("with background", "without background")  # benchmarks are averaged in two groups, as in the paper's tables
NOT_RUN = "not run"
DENSE_TITLES = {  # names of the untrained runs
    "clip": "CLIP", "maskclip": "MaskCLIP", "sclip": "SCLIP", "clearclip": "ClearCLIP", "naclip": "NACLIP", "pearl": "PEARL's attention",
    "reco": "ReCo",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """All results of a study.

    rows: a row per run, seed, benchmark and unit. Columns: run, kind, seed (NaN if nothing was trained), benchmark, group (of GROUPS),
    unit, own (whether it is the run's segment.unit), miou (percent).
    changes: {run: what it changes in the default run}. parameters: {key: value} of the default run.
    costs: {run: (number of trained weights, seconds per training)}.
    """

    rows: pd.DataFrame
    changes: dict
    parameters: dict
    costs: dict = field(default_factory=dict)

    @property
    def baseline(self):
        """The name of the untrained run with the default run's dense mode, which is that mode."""
        return self.parameters["clip.dense"]

    @property
    def supervised(self):
        """The name of the supervised run with the fewest other changes, or None if there is none."""
        supervised = [run for run, changes in self.changes.items() if changes.get("train.method") == "supervised"]
        return min(supervised, key=lambda run: len(self.changes[run]), default=None)

    @property
    def methods(self):
        """{run: train.method}, one run per method: the default run, and for each other method the run with the fewest changes among those
        that change only CHOSEN and OWN. Those with other pixels or texts are "METHOD, by text" or "METHOD, curated texts". The supervised
        run comes last."""
        runs = {_method(self.parameters): DEFAULT}
        for run, changes in sorted(self._compared.items(), key=lambda item: len(item[1])):
            if CHOSEN & changes.keys() and changes.keys() <= {*CHOSEN, *OWN}:
                runs.setdefault(_method(self.parameters | changes), run)
        methods = {run: method for method, run in runs.items() if method != "supervised"}
        return methods | ({self.supervised: "supervised"} if self.supervised else {})

    @property
    def _compared(self):
        """`changes` of the runs that differ from the default run only by these: all but the untrained ones."""
        untrained = set(self.rows.loc[self.rows["kind"] == "untrained", "run"])
        return {run: changes for run, changes in self.changes.items() if run not in untrained}

    @property
    def ablated(self):
        """Keys that some run changes alone, in order: each gets a chart. Methods have their own comparison."""
        alone = (key for changes in self._compared.values() for key in changes if len(changes) == 1)
        return list(dict.fromkeys(key for key in alone if key not in CHOSEN))

    def find(self, changes):
        """The name of the run with these changes, apart from those equal to the default, or None."""
        changes = {key: value for key, value in changes.items() if self.parameters[key] != value}
        return next((run for run, others in self._compared.items() if others == changes), None)

    def series(self, key, rest=None):
        """{value of key: run}, sorted, for the runs that differ from the default in `rest` and at most `key`. rest: changes; None: {}."""
        series = {}
        for run, changes in self._compared.items():
            if {k: v for k, v in changes.items() if k != key} == (rest or {}):
                series[changes.get(key, self.parameters[key])] = run
        return dict(sorted(series.items(), key=lambda item: (item[0] is None, isinstance(item[0], str), item[0] or 0)))

    def ablation(self, key):
        """`averages` of the runs that change key and of the default run, with columns key (its value) and with (other changes, as text, or
        "default"). Runs with other changes are included if at least two share those."""
        curves, averages = {}, self.averages()
        for changes in self._compared.values():
            rest = {k: v for k, v in changes.items() if k != key}
            name, runs = ", ".join(f"{k.split('.')[1]} = {v}" for k, v in rest.items()) or "default", self.series(key, rest)
            if len(runs) > 1:
                of_runs = [averages[averages["run"] == run].assign(**{key: value, "with": name}) for value, run in runs.items()]
                curves[frozenset(rest.items())] = of_runs
        return pd.concat(itertools.chain(*curves.values()), ignore_index=True)

    def averages(self, unit=None):
        """The mean mIoU of each group of benchmarks by run and seed: columns run, seed, group, miou. unit: None: each run's own."""
        rows = self.rows[self.rows["own"] if unit is None else self.rows["unit"] == unit]
        return rows.groupby(["run", "seed", "group"], dropna=False, sort=False)["miou"].mean().reset_index()

    def gap_closed(self):
        """How much of the gap between the baseline and the supervised run of its seed each run closes by its own unit, in percent: columns
        as in `averages`; NaN without a supervised run of that seed. Untrained runs are compared with the mean of the supervised runs."""
        rows = self.averages()
        floor = rows["group"].map(rows[rows["run"] == self.baseline].set_index("group")["miou"])
        supervised = rows[rows["run"] == self.supervised].drop(columns="run")
        top = rows.merge(supervised, "left", ["seed", "group"], suffixes=("", " supervised"))["miou supervised"]
        top = top.where(rows["seed"].notna(), rows["group"].map(supervised.groupby("group")["miou"].mean()))
        return rows.assign(miou=100 * (rows["miou"] - floor) / (top - floor))


def _method(parameters):
    """A method, and how it differs from that of the same name."""
    method, curated = parameters["train.method"], parameters["train.texts"] == "curated"
    by_text = method == "simseg" and parameters["simseg.select"] == "text"
    return method + ", by text" * by_text + ", curated texts" * curated


def by_seed(averages, run, group):
    """mIoU of a run on a group of benchmarks, from Results.averages: a Series by seed, empty if it was not run."""
    return averages[(averages["run"] == run) & (averages["group"] == group)].set_index("seed")["miou"]


def load_results(paths):
    """Load the Results of a study from JSON files. Raises FileNotFoundError that names the first missing file, and ValueError that names
    the first one evaluated on other benchmarks than those before it."""
    rows, suite, changes, parameters, costs = [], None, {}, {}, {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: `dvc repro` makes it")
        result = json.loads(path.read_text(encoding="utf-8"))
        run, of_run = result["run"], dict(result["parameters"])
        suite = suite or set(result["miou"])
        if set(result["miou"]) != suite:
            raise ValueError(f"{path} is on {', '.join(result['miou'])}, other results on {', '.join(sorted(suite))}: evaluate it again")
        changes[run] = dict(result["changes"])
        costs[run] = result["weights"], result["seconds"]["train"] / len(result["seeds"])
        parameters = of_run if run == DEFAULT else parameters
        tested = ((seed, benchmark, unit) for seed in result["seeds"] for benchmark in seed["iou"] for unit in seed["iou"][benchmark])
        for seed, benchmark, unit in tested:
            iou = seed["iou"][benchmark][unit]
            row = {"run": run, "kind": result["kind"], "seed": seed["seed"], "benchmark": benchmark, "group": GROUPS[BACKGROUND not in iou]}
            rows.append(row | {"unit": unit, "own": unit == of_run["segment.unit"], "miou": seed["miou"][benchmark][unit]})
    return Results(pd.DataFrame(rows).astype({"seed": float, "miou": float}), changes, parameters, costs)


def mean_std(values, missing=NOT_RUN):
    """Format mIoU over seeds as mean ± standard deviation (n), or a single value as it is."""
    spread = f" ± {values.std():.1f} ({values.count()})" if values.count() > 1 else ""
    return f"{values.mean():.1f}{spread}" if values.count() else missing
