"""All results of a study as one table, and what is looked up in it. What a result holds: runs.make_result."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..benchmarks.datasets import BACKGROUND
from ..benchmarks.miou import mean
from ..world import scenes

OWN = ("train.lr", "segment.unit", "segment.threshold")  # what a method may choose for itself in a comparison
GROUPS = ("with background", "without background")  # benchmarks are averaged in two groups, as in the paper's tables


@dataclass(frozen=True)
class Results:
    """All results of a study.

    rows: DataFrame, a row for each run, seed, benchmark and unit. Columns: run, kind, seed (NaN if nothing was trained), benchmark,
    group (of GROUPS), unit, own (whether the unit is the run's segment.unit), miou, things and stuff (means over those classes
    of the rendered world, NaN elsewhere), in percent.
    changes: {run: what it changes in the default run}, without train.seeds. parameters: {key: value} of the default run.
    costs: {run: (number of trained weights, seconds of a training)}.
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
        """The name of the untrained run that reads dense features as the default run does."""
        return f"untrained/{self.parameters['clip.dense']}"

    @property
    def supervised(self):
        """The name of the supervised run, that with the fewest other changes, or None if none was run."""
        found = [run for run, changes in self.changes.items() if changes.get("train.method") == "supervised"]
        return min(found, key=lambda run: len(self.changes[run]), default=None)

    @property
    def methods(self):
        """{run: train.method} of the runs that stand for a method: the default run's, and of each other method the run with the fewest
        changes, all of them what each may choose for itself (OWN). The supervised run is the last."""
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
        """Runs that differ from the default run by their changes alone: all but the untrained."""
        return set(self.rows.loc[self.rows["kind"] != "untrained", "run"])

    @property
    def ablated(self):
        """Keys that some run changes alone, in their order: each makes a chart. Methods have a comparison of their own."""
        single = [changes for run, changes in self.changes.items() if run in self._compared and len(changes) == 1]
        return list(dict.fromkeys(key for changes in single for key in changes if key != "train.method"))

    def find(self, changes):
        """The name of the run with these changes, those to the default's own value left out, or None if it was not run."""
        changes = {key: value for key, value in changes.items() if self.parameters[key] != value}
        return next((name for name in self.changes if name in self._compared and self.changes[name] == changes), None)

    def series(self, key, rest=None):
        """{value of key: run} of the runs that differ from the default in `rest` and in `key` at most. rest: changes, {} if None."""
        rest = rest or {}
        found = {}
        for name in self._compared:
            others = {k: v for k, v in self.changes[name].items() if k != key}
            if others == rest:
                found[self.changes[name].get(key, self.parameters[key])] = name
        return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def averages(self, unit=None):
        """The mean mIoU of each group of benchmarks by run and seed, as the paper averages: columns run, seed, group, miou.

        unit: by which unit; None: each run's own.
        """
        rows = self.rows[self.rows["own"] if unit is None else self.rows["unit"] == unit]
        return rows.groupby(["run", "seed", "group"], dropna=False, sort=False)["miou"].mean().reset_index()

    def gap_closed(self):
        """How far each run goes from the baseline to the supervised run of the same seed, in percent:
        (run - baseline) / (supervised - baseline), by each run's own unit. Columns as of `averages`, NaN without a supervised run of that
        seed. A run that was not trained has no seed: it is compared with the mean of the supervised runs."""
        rows = self.averages()
        floor = rows["group"].map(rows[rows["run"] == self.baseline].set_index("group")["miou"])
        supervised = rows[rows["run"] == self.supervised].drop(columns="run")
        top = rows.merge(supervised, "left", ["seed", "group"], suffixes=("", " supervised"))["miou supervised"]
        top = top.where(rows["seed"].notna(), rows["group"].map(supervised.groupby("group")["miou"].mean()))
        return rows.assign(miou=100 * (rows["miou"] - floor) / (top - floor))


def load_results(paths):
    """Results of a study from their JSON files. Raises FileNotFoundError that names the first that is missing, ValueError
    that names the first that was not evaluated on the benchmarks of those before it."""
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
