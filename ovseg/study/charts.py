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
    for rest in (rest for index, rest in enumerate(rests) if rest not in rests[:index]):
        series = results.series(key, rest)
        if len(series) > 1:
            curve = ", ".join(f"{name.split('.')[1]} = {value}" for name, value in rest.items()) or "default"
            rows += [averages[averages["run"] == run].assign(**{key: value, "with": curve}) for value, run in series.items()]
    rows = pd.concat(rows, ignore_index=True)
    hue, groups = ("with" if rows["with"].nunique() > 1 else None), [group for group in GROUPS if group in set(rows["group"])]
    layout = {"hue": hue, "col": "group", "col_order": groups, "errorbar": "sd", "height": 3, "aspect": 1.4}
    if pd.api.types.is_numeric_dtype(rows[key]) and not pd.api.types.is_bool_dtype(rows[key]):
        curves = {"kind": "line", "marker": "o", "err_style": "bars", "facet_kws": {"sharey": False}}
        chart = sns.relplot(rows, x=key, y="miou", **curves, **layout).set_axis_labels(key, "mIoU (%)")
        chart.refline(x=results.parameters[key], color="grey", linestyle=":")
    else:
        chart = sns.catplot(rows.astype({key: str}), kind="bar", x="miou", y=key, **layout).set_axis_labels("mIoU (%)", key)
    return chart.set_titles("{col_name}").figure
