"""Charts of results, by seaborn: what the figures notebook and the benchmark draw. None computes a result."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib import ticker

from . import tables

sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")


def results_bars(table):
    """mIoU per benchmark, a bar per method and unit. table: of tables.results."""
    means = table[[name for name in table.columns if ":" not in name]]
    long = means.reset_index().melt(["method", "unit"], var_name="benchmark", value_name="mIoU")
    chart = sns.catplot(
        long, kind="bar", x="method", y="mIoU", hue="unit", col="benchmark", col_wrap=min(4, means.shape[1]), height=3.2, aspect=1.3
    )
    chart.set_axis_labels("", "mIoU (%)")
    return chart.figure


def _beside(rows, paper, key):
    """Ours and the paper's numbers in one long table. rows: of tables.averages; paper: a list of paper/tables.yaml."""
    theirs = pd.DataFrame(paper).melt(key, list(tables.GROUPS), var_name="group", value_name="miou").assign(source="paper")
    return pd.concat([rows[[key, "group", "miou"]].assign(source="here"), theirs], ignore_index=True)


def granularity(rows, paper):
    """mIoU of each granularity, ours (with its standard deviation over seeds) beside the paper's Table 3."""
    order = list(dict.fromkeys([*(row["granularity"] for row in paper), *rows["granularity"]]))
    chart = sns.catplot(
        _beside(rows, paper, "granularity"), kind="bar", x="miou", y="granularity", hue="group", col="source", errorbar="sd",
        order=order, hue_order=tables.GROUPS, height=3.6, aspect=1.25,
    )  # fmt: skip
    chart.set_axis_labels("mIoU (%)", "").set_titles("{col_name}")
    sns.move_legend(chart, "upper center", ncols=2, title=None, bbox_to_anchor=(0.5, 1.1))
    return chart.figure


def meta_points(rows, pixels, paper, paper_pixels):
    """mIoU over the number of meta-points, ours beside the paper's Table 4; the dashed line is every pixel by itself.

    rows, pixels: of tables.averages, those of meta-points and of pixels. paper: rows of paper/tables.yaml, paper_pixels
    the number of points there that means pixels.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex="col", layout="constrained")
    theirs = pd.DataFrame(paper).melt("points", list(tables.GROUPS), var_name="group", value_name="miou")
    columns = {"here": (rows, pixels), "paper": (theirs[theirs["points"] != paper_pixels], theirs[theirs["points"] == paper_pixels])}
    for column, (title, (points, line)) in zip(axes.T, columns.items(), strict=True):
        for axis, group, colour in zip(column, tables.GROUPS, sns.color_palette(), strict=False):
            found = tables.at(points, group=group)
            if found.empty:  # no such benchmark here
                axis.set_visible(False)
                continue
            sns.lineplot(found, x="points", y="miou", errorbar="sd", err_style="bars", marker="o", color=colour, ax=axis)
            axis.axhline(tables.at(line, group=group)["miou"].mean(), color=colour, linestyle="--")
            ticks = sorted(found["points"].unique())
            axis.set(xscale="log", title=f"{title}, {group}", xlabel="meta-points a window", ylabel="mIoU (%)")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    return figure


def curve(rows, key, default, hue="group"):
    """mIoU over a share (alpha, beta or k), its standard deviation over seeds as bars; the dotted line is the default.

    rows: of tables.averages. hue: what tells curves apart beside the group, e.g. "granularity".
    """
    chart = sns.relplot(
        rows, kind="line", x=key, y="miou", hue=hue, col="group", col_order=[g for g in tables.GROUPS if g in set(rows["group"])],
        marker="o", errorbar="sd", err_style="bars", height=3, aspect=1.4, facet_kws={"sharey": False}, legend=hue != "group",
    )  # fmt: skip
    chart.set_axis_labels(key, "mIoU (%)").set_titles("{col_name}")
    for axis in chart.axes.flat:
        axis.axvline(default, color="grey", linestyle=":")
    return chart.figure


def growth(found):
    """How cost grows: seconds and extra memory over B, L, classes and image size. found: of bench.measure."""
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
