"""Matplotlib curves and bars for the notebooks. Each function takes data and returns a figure; none computes a result."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np

from .colours import SERIES


def training(history, title=None):
    """Losses (means over seeds) and the decoder's gates over steps. history: DataFrame of history.csv files, with a column `seed`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    mean = history.groupby("step").mean().drop(columns=["seed", "epoch", "lr", "gate0", "gate1"])
    styles = ["-", "--", "-.", ":"]
    losses = mean.drop(columns="loss") if mean.shape[1] == 2 else mean.rename(columns={"loss": "sum"})  # a single loss equals the sum
    losses = losses.rolling(5, min_periods=1).mean()
    losses.plot(ax=left, style=[styles[i % 4] for i in range(losses.shape[1])], xlabel="step", ylabel="loss")
    for style, colour, (gate, name) in zip(styles, SERIES, {"gate0": "first block", "gate1": "second block"}.items(), strict=False):
        for number, (_, rows) in enumerate(history.groupby("seed")):  # their signs are arbitrary, so they are not averaged
            right.plot(rows["step"], np.tanh(rows[gate]), style, color=colour, label=None if number else name)
    right.set(xlabel="step", ylabel="tanh(gate)")
    right.set_title("how much of each block the decoder adds, by seed (0: none)", fontsize=10)
    seeds = history["seed"].nunique()
    left.set_title(f"losses, mean of 5 steps{f' and {seeds} seeds' * (seeds > 1)}", fontsize=10)
    figure.suptitle(textwrap.fill(title or "", 110), fontsize=11)
    for axis in (left, right):
        axis.grid(alpha=0.4)
        axis.legend(fontsize=9)
    return figure


def thresholds(curve, own):
    """mIoU over the background threshold. curve: DataFrame from thresholds.curve. own: {benchmark: threshold in use}."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for number, (name, rows) in enumerate(curve.groupby("benchmark", sort=False)):
        best = rows.loc[rows["mIoU"].idxmax()]
        label = f"{name}: best {best['mIoU']:.1f}% at {best['threshold']:g}"
        (line,) = axis.plot(rows["threshold"], rows["mIoU"], marker="os^Dv"[number % 5], markersize=4, label=label)
        axis.axvline(own[name], color=line.get_color(), linestyle="--", label=f"{name}: this run's threshold, {own[name]:g}")
    axis.set(xlabel="threshold of the background (softmax score, 0 to 1)", ylabel="mIoU on calibration pictures (%)", xlim=(0, 1))
    axis.grid(alpha=0.4)
    axis.legend(fontsize=9)
    return figure


def bars(values, label):
    """One bar per entry of a Series, in order, named by its index. label: of the value axis."""
    figure, axis = plt.subplots(figsize=(max(3, 0.32 * len(values)), 2.8), layout="constrained")
    axis.bar(values.index, values)
    axis.set_ylabel("\n".join(textwrap.wrap(label, 30)))
    axis.tick_params("x", rotation=60)
    axis.margins(x=0.01)
    return figure
