"""The comparison of methods: the paper's Tables 1 and 2 in miniature, on the benchmarks of this study."""

import pandas as pd

from .findings import compare
from .results import GROUPS

NAMES = {"mgca": "MGCA", "mixreorg": "MixReorg", "tcl": "TCL", "pacl": "PACL", "groupvit": "GroupViT", "supervised": "supervised"}
NOTE = """All methods train the same decoder on the same features, batches and steps, and all but the supervised one on the same texts with
the same negatives (MixReorg's patches are contrasted within their mix). "Its own" lists the values in which a method differs from the
default run (learning rate, threshold of the background, unit); docs/methods.md says how they were chosen. Nothing else was tuned for any
method. The untrained baseline is scored with the default run's threshold. The paper's columns are averages over its own benchmarks,
the best where it lists several training sets: compare their order, not their values. Images a second are of segmenting benchmark pictures
one by one with the method's own unit, CLIP included.
"""
AGAINST = "The default run's method against each other one, by their own units, paired by seed as the findings are.\n"


def name(method):
    """The display name of a value of train.method: "mgca+mixreorg" becomes "MGCA + MixReorg"."""
    return " + ".join(NAMES.get(part, part) for part in method.split("+"))


def comparison_table(results, paper, mean_std, baseline, speeds):
    """One row for the baseline, named `baseline`, and one for each method.

    results: results.Results. paper: paper/tables.yaml. mean_std: report.mean_std. speeds: {run: images per second} for some runs.
    """
    own, pixels, gaps = results.averages(), results.averages("pixel"), results.gap_closed() if results.supervised else None
    theirs = dict(zip(GROUPS, (paper["with_background"]["rows"], paper["without_background"]["rows"]), strict=True))
    rows = []
    for run, method in {results.baseline: None, **results.methods}.items():
        row = {"method": name(method) if method else baseline}
        changes = {key: value for key, value in results.changes[run].items() if key not in ("train.method", "clip.dense")}
        row["its own"] = ", ".join(f"{key.split('.')[1]} {value}" for key, value in changes.items())
        for group in GROUPS:
            if group not in set(own["group"]):
                continue
            for title, averages in ((group, own), (f"{group}, by pixels", pixels), (f"{group}, gap closed", gaps)):
                if averages is not None:
                    row[title] = mean_std(averages.loc[(averages["run"] == run) & (averages["group"] == group), "miou"])
            numbers = [r["average"] for r in theirs[group] if r["method"] == row["method"] and r["average"] is not None]
            row[f"{group}, paper"] = f"{max(numbers):.1f}" if numbers else ""
        weights, seconds = results.costs.get(run, (0, 0.0))
        row |= {"trained weights": f"{weights:,}" if method else "", "seconds a training": f"{seconds:.0f}" if method else ""}
        row["images a second"] = f"{speeds[run]:.1f}" if run in speeds else ""
        rows.append(row)
    return pd.DataFrame(rows)


def against(results):
    """Compare the default run's method with every other method that learns from texts: a list of findings.Comparison."""
    averages, found = results.averages(), []
    for run, method in results.methods.items():
        if run == results.default or method == "supervised":
            continue
        for group in dict.fromkeys(averages["group"]):
            first, second = (
                averages[(averages["run"] == r) & (averages["group"] == group)].set_index("seed")["miou"] for r in (results.default, run)
            )
            found.append(compare(group, (name(results.parameters["train.method"]), name(method)), first, second))
    return found
