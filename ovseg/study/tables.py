"""Results as tables: all runs in one DataFrame, and what figures and findings take from it.

Benchmarks are averaged in two groups, as the paper's tables do: with and without background.
"""

import json
from pathlib import Path

import pandas as pd

from ..world import scenes

GROUPS = ("with background", "without background")
POINT = ["granularity", "alpha", "beta", "k"]  # what a trained run is told apart by, besides its seed
NONE = "none"  # the granularity of a run that trained nothing
METHODS = {"clip": "CLIP", "maskclip": "MaskCLIP", "sclip": "SCLIP", "clearclip": "ClearCLIP"}  # by dense.DENSE_MODES


def read(paths):
    """Read results into one DataFrame: a row for each run, benchmark and unit.

    Columns: run, seed (NaN if nothing was trained), benchmark, group (of GROUPS), unit, points (meta-points a window, NaN
    for other units), dense (how CLIP's features are read), miou, things and stuff (means over those classes of the
    rendered world, NaN elsewhere), and POINT, granularity being NONE if nothing was trained. mIoU in percent.
    Raises FileNotFoundError that names the first result that is missing, ValueError that names the first that was not
    evaluated on the benchmarks of those before it.
    """
    rows, suite = [], None
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: `dvc repro` makes it")
        result = json.loads(path.read_text())
        suite = suite or set(result["miou"])
        if set(result["miou"]) != suite:
            raise ValueError(f"{path} is on {', '.join(result['miou'])}, other results on {', '.join(sorted(suite))}: evaluate it again")
        value = {row["name"]: row["value"] for row in result["parameters"]}
        point = {"granularity": value.get("mgca.granularity", NONE)} | {key: value.get(f"mgca.{key}") for key in POINT[1:]}
        for (benchmark, unit), classes in pd.DataFrame(result["classes"]).groupby(["benchmark", "unit"], sort=False):
            iou = classes.set_index("class")["iou"].astype(float)
            row = {"run": result["run"], "seed": result["seed"], "benchmark": benchmark, "unit": unit}
            row["group"] = GROUPS[0] if "background" in iou.index else GROUPS[1]
            row["points"] = value["segment.meta_points"] if unit == "meta-point" else None
            row["dense"], row["miou"] = value["clip.dense"], result["miou"][benchmark][unit]
            if set(scenes.CLASSES) <= set(iou.index):
                row |= {"things": iou[list(scenes.THINGS)].mean(), "stuff": iou[list(scenes.STUFF)].mean()}
            rows.append(row | point)
    columns = ["run", "seed", "benchmark", "group", "unit", "points", "dense", "miou", "things", "stuff", *POINT]
    return pd.DataFrame(rows, columns=columns).astype({name: float for name in ("seed", "points", "things", "stuff", *POINT[1:])})


def averages(runs):
    """The mean mIoU of each group of benchmarks, as the paper averages: a row for each run, group, unit and number of points.

    A run that repeats another's point and seed (a list of ablations that holds the headline's own value) is left out.
    """
    keys = ["run", "seed", "group", "unit", "points", "dense", *POINT]
    means = runs.groupby(keys, dropna=False, sort=False)["miou"].mean().reset_index()
    trained = means["granularity"] != NONE
    return means[~(trained & means.duplicated(keys[1:]))]


def headline(runs):
    """The value of each of POINT in the headline's run."""
    return runs.loc[runs["run"] == "mgca", POINT].iloc[0].to_dict()


def baseline(runs, **values):
    """What the headline is compared with: the untrained run that reads dense features as it does; `values` is as of `at`."""
    return at(runs, granularity=NONE, dense=runs.loc[runs["run"] == "mgca", "dense"].iloc[0], **values)


def at(runs, **values):
    """The rows where columns hold values."""
    for name, value in values.items():
        runs = runs[runs[name] == value]
    return runs


def curve(runs, key, **fixed):
    """The runs that differ from the headline in `key` at most, the headline's own included; `fixed` is as of `at`.

    runs: of `averages`. key: one of POINT. The sweep over meta-points is left out.
    """
    others = {name: value for name, value in headline(runs).items() if name != key}
    points = runs.loc[runs["run"] == "mgca", "points"].max()
    return at(runs[runs["points"].isna() | (runs["points"] == points)], **(others | fixed))


def results(runs):
    """The table of methods: a row for each untrained run (by METHODS) and the headline, and each unit; a column for each benchmark.

    Benchmarks of things and stuff get a column of each besides. runs: of `read`.
    """
    rows = {}
    own = runs[(runs["granularity"] == NONE) | (runs["run"] == "mgca")].drop_duplicates(["run", "benchmark", "unit"])
    for row in own.itertuples():
        cells = rows.setdefault(("MGCA" if row.run == "mgca" else METHODS[row.dense], row.unit), {})
        cells[row.benchmark] = row.miou
        if not pd.isna(row.things):
            cells |= {f"{row.benchmark}: things": row.things, f"{row.benchmark}: stuff": row.stuff}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["method", "unit"])
    return table


def suite(runs, benchmarks, unit):
    """The baseline by pixels and the headline by `unit` on benchmarks of those names: what stands under the paper's Tables 1 and 2.

    runs: of `read`. unit: the segmenter's own. Returns a DataFrame: rows the baseline (by METHODS) and MGCA; columns of two
    levels, (benchmark or "average", "mean" | "std" | "count"), over the headline's seeds. NaN where a benchmark was not run;
    the average is over all of them, and NaN if one was not run.
    """
    points = runs.loc[runs["run"] == "mgca", "points"].max()
    own = at(runs, unit=unit, **headline(runs))
    own = own[own["points"].isna() | (own["points"] == points)].drop_duplicates(["seed", "benchmark"])
    rows, untrained = {}, baseline(runs, unit="pixel")
    for method, found in {METHODS[untrained["dense"].iloc[0]]: untrained, "MGCA": own}.items():
        by_seed = found.pivot(index="run", columns="benchmark", values="miou").reindex(columns=benchmarks)
        by_seed["average"] = by_seed.mean(axis=1, skipna=False)
        rows[method] = by_seed.agg(["mean", "std", "count"]).unstack()
    return pd.DataFrame(rows).T


def beside_paper(runs, key, paper):
    """Our mean, standard deviation over seeds and number of seeds beside the paper's number. Returns a DataFrame.

    runs: of `averages`, already those to be shown. key: its column of settings, e.g. "granularity". paper: rows of
    paper/tables.yaml with that key and a number for each of GROUPS. A row for each setting of either, the paper's
    first, NaN where one has none.
    """
    ours = runs.groupby([key, "group"], sort=False)["miou"].agg(["mean", "std", "count"]).unstack("group")
    table = pd.DataFrame(index=pd.Index(dict.fromkeys([*(row[key] for row in paper), *ours.index]), name=key))
    for group in GROUPS:
        if group in ours["mean"]:
            for name in ("mean", "std", "count"):
                table[f"{group}, {name}"] = ours[name][group].reindex(table.index)
        table[f"{group}, paper"] = pd.Series({row[key]: row[group] for row in paper}).reindex(table.index)
    return table
