"""The chart of an ablation, for the figures notebook. Importing it sets the theme of all charts."""

import pandas as pd
import seaborn as sns

from .figures import SERIES
from .results import GROUPS

sns.set_theme(style="whitegrid", context="notebook", palette=SERIES)


def ablation(results, key):
    """Chart the runs that change one key, and the default run, with standard deviations over seeds: a figure. results: results.Results.

    Numbers give a curve, with a dotted line at the default; other values give bars. Runs that also change other keys form a separate curve
    if at least two share those changes.
    """
    rests = [{}, *({k: v for k, v in changes.items() if k != key} for changes in results.changes.values() if key in changes)]
    averages, rows = results.averages(), []
    for rest in (rest for index, rest in enumerate(rests) if rest not in rests[:index] and len(results.series(key, rest)) > 1):
        curve = ", ".join(f"{name.split('.')[1]} = {value}" for name, value in rest.items()) or "default"
        rows += [averages[averages["run"] == run].assign(**{key: v, "with": curve}) for v, run in results.series(key, rest).items()]
    rows, default = pd.concat(rows, ignore_index=True), results.parameters[key]
    layout = {"hue": "with" if rows["with"].nunique() > 1 else None, "col": "group", "height": 3, "aspect": 1.4, "errorbar": "sd"}
    layout["col_order"] = [group for group in GROUPS if group in set(rows["group"])]
    if isinstance(default, int | float) and not isinstance(default, bool):
        curves = {"kind": "line", "marker": "o", "err_style": "bars", "facet_kws": {"sharey": False}}
        chart = sns.relplot(rows, x=key, y="miou", **curves, **layout).set_axis_labels(key, "mIoU (%)")
        chart.refline(x=default, color="grey", linestyle=":")
    else:
        chart = sns.catplot(rows.astype({key: str}), kind="bar", x="miou", y=key, **layout).set_axis_labels("mIoU (%)", key)
    return chart.set_titles("{col_name}").figure
