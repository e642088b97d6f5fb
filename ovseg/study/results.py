"""All results of a study as one table, with lookups. runs.make_result describes a single result."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..benchmarks.datasets import BACKGROUND
from ..benchmarks.miou import mean
from ..world import scenes

OWN = ("train.lr", "segment.unit", "segment.threshold")  # parameters that each method may tune for itself in a comparison
GROUPS = ("with background", "without background")  # benchmarks are averaged in two groups, as in the paper's tables


@dataclass(frozen=True)
class Results:
    """All results of a study.

    rows: DataFrame with one row per run, seed, benchmark and unit. Columns: run, kind, seed (NaN if nothing was trained), benchmark,
    group (of GROUPS), unit, own (whether the unit is the run's segment.unit), miou, things and stuff (means over those classes
    of the rendered world, NaN elsewhere), in percent.
    changes: {run: what it changes in the default run}, without train.seeds. parameters: {key: value} of the default run.
    costs: {run: (number of trained weights, seconds per training)}.
    """

    rows: pd.DataFrame
    changes: dict
    parameters: dict
    costs: dict = field(default_factory=dict)

    @property
    def default(self):
        """The name of the default run."""
        return self.find({})

    @property
    def baseline(self):
        """The name of the untrained run with the default run's dense mode."""
        return f"untrained/{self.parameters['clip.dense']}"

    @property
    def supervised(self):
        """The name of the supervised run with the fewest other changes, or None if there is none."""
        found = [run for run, changes in self.changes.items() if changes.get("train.method") == "supervised"]
        return min(found, key=lambda run: len(self.changes[run]), default=None)

    @property
    def methods(self):
        """{run: train.method}, one run per method: the default run, and for each other method the run with the fewest changes among those
        that change only train.method and OWN. The supervised run comes last."""
        found = {self.parameters["train.method"]: self.default}
        for run in sorted(self._compared, key=lambda run: (len(self.changes[run]), list(self.changes).index(run))):
            changes = self.changes[run]
            if "train.method" in changes and set(changes) <= {"train.method", *OWN}:
                found.setdefault(changes["train.method"], run)
        found.pop("supervised", None)
        supervised = {self.supervised: "supervised"} if self.supervised else {}
        return {run: method for method, run in found.items()} | supervised

    @property
    def _compared(self):
        """Runs that differ from the default run only by their changes: all but the untrained ones."""
        return set(self.rows.loc[self.rows["kind"] != "untrained", "run"])

    @property
    def ablated(self):
        """Keys that some run changes alone, in order: each gets a chart. train.method is left out; methods have their own comparison."""
        single = [changes for run, changes in self.changes.items() if run in self._compared and len(changes) == 1]
        return list(dict.fromkeys(key for changes in single for key in changes if key != "train.method"))

    def find(self, changes):
        """The name of the run with these changes, ignoring those equal to the default, or None if there is none."""
        changes = {key: value for key, value in changes.items() if self.parameters[key] != value}
        return next((name for name in self.changes if name in self._compared and self.changes[name] == changes), None)

    def series(self, key, rest=None):
        """{value of key: run} for the runs that differ from the default in `rest` and at most `key`. rest: changes; None means {}."""
        rest = rest or {}
        found = {}
        for name in self._compared:
            others = {k: v for k, v in self.changes[name].items() if k != key}
            if others == rest:
                found[self.changes[name].get(key, self.parameters[key])] = name
        return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def averages(self, unit=None):
        """The mean mIoU of each group of benchmarks by run and seed, as the paper averages: columns run, seed, group, miou.

        unit: the semantic unit; None: each run's own.
        """
        rows = self.rows[self.rows["own"] if unit is None else self.rows["unit"] == unit]
        return rows.groupby(["run", "seed", "group"], dropna=False, sort=False)["miou"].mean().reset_index()

    def gap_closed(self):
        """The share of the gap between the baseline and the supervised run of the same seed that each run closes, in percent:
        (run - baseline) / (supervised - baseline), with each run's own unit. Columns as in `averages`; NaN without a supervised run of
        that seed. An untrained run has no seed and is compared with the mean of the supervised runs."""
        rows = self.averages()
        floor = rows["group"].map(rows[rows["run"] == self.baseline].set_index("group")["miou"])
        supervised = rows[rows["run"] == self.supervised].drop(columns="run")
        top = rows.merge(supervised, "left", ["seed", "group"], suffixes=("", " supervised"))["miou supervised"]
        top = top.where(rows["seed"].notna(), rows["group"].map(supervised.groupby("group")["miou"].mean()))
        return rows.assign(miou=100 * (rows["miou"] - floor) / (top - floor))


def load_results(paths):
    """Load the Results of a study from JSON files. Raises FileNotFoundError that names the first missing file, and ValueError that names
    the first one from an earlier version or evaluated on other benchmarks than those before it."""
    rows, suite, changes, parameters, costs = [], None, {}, {}, {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: `dvc repro` makes it")
        result = json.loads(path.read_text())
        if "weights" not in result:
            raise ValueError(f"{path} was written by an earlier version: evaluate it again")
        suite = suite or set(result["miou"])
        if set(result["miou"]) != suite:
            raise ValueError(f"{path} is on {', '.join(result['miou'])}, other results on {', '.join(sorted(suite))}: evaluate it again")
        changes[result["run"]] = {key: value for key, value in result["changes"] if key != "train.seeds"}
        costs[result["run"]] = result["weights"], result["seconds"]["train"] / len(result["seeds"])
        own = dict(result["parameters"])
        if result["kind"] == "default":
            parameters = own
        for seed in result["seeds"]:
            for benchmark, by_unit in seed["iou"].items():
                for unit, iou in by_unit.items():
                    row = {"run": result["run"], "kind": result["kind"], "seed": seed["seed"], "benchmark": benchmark, "unit": unit}
                    row["group"] = GROUPS[0] if BACKGROUND in iou else GROUPS[1]
                    row["own"], row["miou"] = unit == own["segment.unit"], seed["miou"][benchmark][unit]
                    if set(scenes.CLASSES) <= set(iou):
                        row |= {"things": mean({c: iou[c] for c in scenes.THINGS}), "stuff": mean({c: iou[c] for c in scenes.STUFF})}
                    rows.append(row)
    columns = ["run", "kind", "seed", "benchmark", "group", "unit", "own", "miou", "things", "stuff"]
    frame = pd.DataFrame(rows, columns=columns).astype({name: float for name in ("seed", "miou", "things", "stuff")})
    return Results(frame, changes, parameters, costs)
