"""Seaborn charts of results for the figures notebook. No function computes a result."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from .colours import SERIES
from .report import PAPER_PIXELS
from .results import GROUPS

sns.set_theme(style="whitegrid", context="notebook", palette=SERIES)


def methods_chart(table):
    """mIoU per benchmark, one bar per method and unit. table: from report.methods_table."""
    means = table[[name for name in table.columns if ":" not in name]]
    long = means.reset_index().melt(["method", "unit"], var_name="benchmark", value_name="mIoU")
    height = 1 + 0.4 * long["method"].nunique()
    chart = sns.catplot(
        long,
        kind="bar",
        x="mIoU",
        y="method",
        hue="unit",
        col="benchmark",
        col_wrap=min(4, means.shape[1]),
        height=height,
        aspect=4.5 / height,
    )
    return chart.set_axis_labels("mIoU (%)", "").set_titles("{col_name}").figure


def ablation(results, key):
    """Chart the runs that change one key, and the default run, with standard deviations over seeds.

    Numeric values give a curve over the key with a dotted line at the default; other values give bars. Runs that also change other keys
    form a separate curve if at least two runs share those changes. results: results.Results. Returns a figure.
    """
    rests = [{k: v for k, v in changes.items() if k != key} for changes in results.changes.values() if key in changes]
    rows, averages = [], results.averages()
    for rest in [{}, *(rest for index, rest in enumerate(rests) if rest and rest not in rests[:index])]:
        series = results.series(key, rest)
        if len(series) < 2:
            continue
        curve = ", ".join(f"{name.split('.')[1]} = {value}" for name, value in rest.items()) or "default"
        for value, run in series.items():
            rows.append(averages[averages["run"] == run].assign(**{key: value, "with": curve}))
    rows = pd.concat(rows, ignore_index=True)
    groups = [group for group in GROUPS if group in set(rows["group"])]
    hue = "with" if rows["with"].nunique() > 1 else None
    if pd.api.types.is_numeric_dtype(rows[key]) and not pd.api.types.is_bool_dtype(rows[key]):
        chart = sns.relplot(
            rows, kind="line", x=key, y="miou", hue=hue, col="group", col_order=groups, marker="o", errorbar="sd", err_style="bars",
            height=3, aspect=1.4, facet_kws={"sharey": False},
        )  # fmt: skip
        for axis in chart.axes.flat:
            axis.axvline(results.parameters[key], color="grey", linestyle=":")
    else:
        rows[key] = rows[key].astype(str)
        chart = sns.catplot(rows, kind="bar", x="miou", y=key, hue=hue, col="group", col_order=groups, errorbar="sd", height=3, aspect=1.4)
        return chart.set_axis_labels("mIoU (%)", key).set_titles("{col_name}").figure
    return chart.set_axis_labels(key, "mIoU (%)").set_titles("{col_name}").figure


def _long(paper, key):
    """The paper's rows as a long table with the columns of Results.averages."""
    return pd.DataFrame(paper).melt(key, list(GROUPS), var_name="group", value_name="miou")


def granularity_chart(results, paper):
    """mIoU of each granularity by pixels: ours (standard deviation over seeds) next to the paper's Table 3."""
    averages = results.averages("pixel")
    runs = {"none": results.baseline} | results.series("mgca.granularity")
    ours = [averages[averages["run"] == run].assign(granularity=name, source="here") for name, run in runs.items()]
    theirs = _long(paper, "granularity").assign(source="paper")
    chart = sns.catplot(
        pd.concat([*ours, theirs], ignore_index=True), kind="bar", x="miou", y="granularity", hue="group", col="source", errorbar="sd",
        order=list(dict.fromkeys([*theirs["granularity"], *runs])), hue_order=GROUPS, height=3.6, aspect=1.25,
    )  # fmt: skip
    chart.set_axis_labels("mIoU (%)", "").set_titles("{col_name}")
    sns.move_legend(chart, "upper center", ncols=2, title=None, bbox_to_anchor=(0.5, 1.1))
    return chart.figure


def meta_points_chart(results, paper):
    """mIoU over the number of meta-points: ours next to the paper's Table 4. The dashed line classifies every pixel by itself."""
    averages, pixels = results.averages("meta-point"), results.averages("pixel")
    runs = results.series("segment.meta_points")
    ours = pd.concat([averages[averages["run"] == run].assign(points=points) for points, run in runs.items()])
    theirs = _long(paper, "points")
    columns = {
        "here": (ours, pixels[pixels["run"] == results.default]),
        "paper": (theirs[theirs["points"] != PAPER_PIXELS], theirs[theirs["points"] == PAPER_PIXELS]),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex="col", layout="constrained")
    for column, (title, (points, line)) in zip(axes.T, columns.items(), strict=True):
        for axis, group, colour in zip(column, GROUPS, sns.color_palette(), strict=False):
            found = points[points["group"] == group]
            if found.empty:  # no such benchmark here
                axis.set_visible(False)
                continue
            sns.lineplot(found, x="points", y="miou", errorbar="sd", err_style="bars", marker="o", color=colour, ax=axis)
            axis.axhline(line.loc[line["group"] == group, "miou"].mean(), color=colour, linestyle="--")
            ticks = sorted(found["points"].unique())
            axis.set(xscale="log", title=f"{title}, {group}", xlabel="meta-points a window", ylabel="mIoU (%)")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    return figure
