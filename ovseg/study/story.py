"""The generated text of an executed notebook: its run, the run's changes, and its numbers next to the default run's and the baseline's.

The results of the default run and the baseline are read from results/runs if they exist and match the current params.yaml. No stage waits
for them, so a notebook may report that they are missing; results/REPORT.md, which is made last, compares all runs.
"""

import json

import pandas as pd

from .. import params
from ..benchmarks.miou import mean
from . import runs
from .report import DENSE_TITLES, mean_std, method_title

ABSENT = "–"


def stage(name, change=""):
    """The heading of a notebook that all runs share, as Markdown. change: the notebook's parameter."""
    changed = f"with {_listed(params.parse_change(change))}" if change else "with `params.yaml` as it is"
    return f"**The stage `{name}`**, {changed}."


def head(run, p):
    """The heading of a run's notebook, as Markdown: name, changes to the default run, seeds, method, units. p: its Params."""
    if run.kind == "default":
        what = "the default run: `params.yaml` as it is"
    elif run.kind == "untrained":
        what = f"CLIP's dense features as {DENSE_TITLES[run.change]} reads them, without any training"
    else:
        of = " (the default run's decoders)" if run.kind == "inferred" else ""
        what = f"{changes(run)}{of}"
    seeds = ", ".join(map(str, range(p.train.seeds)))
    learned = "nothing is trained" if run.kind == "untrained" else f"{method_title(p.train.method)}, trained at seeds {seeds}"
    return f"**`{run.name}`**: {what}.\n\n- {learned}\n- semantic units: {', '.join(runs.units_of(run, p))} (the first is its own)"


def title(run):
    """A run's name for figures, with spaces where lines may break."""
    return f"run {run.name.replace(',', ', ')}"


def changes(run):
    """What a run changes in the default run: "`mgca.k` from 0.06 to 0.4"."""
    default, values = runs.Run().params(), []
    for key, value in run.changes.items():
        section, name = key.split(".")
        before = getattr(getattr(default, section), name)
        values.append(f"`{key}` from {before} to {value}" if before != value else f"`{key}` = {value}, as the default run")
    return "changes " + ", ".join(values)


def values(sections):
    """Sections of Params as a Markdown list; long lists show only their length. sections: {name: section}."""

    def text(value):
        return f"{len(value)} of them" if isinstance(value, list) and len(value) > 3 else f"{value}"

    listed = {name: [f"{key} = {text(value)}" for key, value in section.model_dump().items()] for name, section in sections.items()}
    return "\n".join(f"- **{name}**: {', '.join(found)}" for name, found in listed.items())


def reference(run):
    """The result of another run for comparison, or None if it does not exist or was made with other parameters.

    run: runs.Run. Changes in data or code are not detected.
    """
    if not run.result.is_file():
        return None
    result = json.loads(run.result.read_text())
    return result if result["parameters"] == json.loads(json.dumps(runs.parameters(run.params()))) else None


def references(run):
    """{title: result or None} of the runs to compare with: the default run and the untrained baseline, except the run itself."""
    baseline = runs.Run("untrained", runs.Run().params().clip.dense)
    others = {"default run": runs.Run(), DENSE_TITLES[baseline.change]: baseline}
    return {title: reference(other) for title, other in others.items() if other != run}


def beside(result, others):
    """mIoU of a result next to others, in percent, mean ± standard deviation over seeds (number of seeds): a DataFrame of texts.

    One row per benchmark and unit of the result. Others use the same unit if available, otherwise their own, which is then named.
    others: from `references`.
    """
    rows = []
    for benchmark, by_unit in result["miou"].items():
        for unit, miou in by_unit.items():
            row = {"benchmark": benchmark, "unit": unit, "this run": _spread(result, benchmark, unit)}
            for title, other in others.items():
                cells = {title: ABSENT, f"this - {title}": ABSENT}
                if other and benchmark in other["miou"]:
                    by = unit if unit in other["miou"][benchmark] else dict(other["parameters"])["segment.unit"]
                    named = "" if by == unit else f", by {by}"
                    difference = miou - other["miou"][benchmark][by]
                    cells = {title: _spread(other, benchmark, by) + named, f"this - {title}": f"{difference:+.1f}"}
                row |= cells
            rows.append(row)
    return pd.DataFrame(rows).set_index(["benchmark", "unit"])


def note(result, others):
    """The Markdown note below `beside`: the thresholds, and what could not be compared."""
    used = ", ".join(f"{value:g} on `{name}`" for name, value in result["thresholds"].items())
    lines = ["mIoU in percent: mean ± standard deviation over seeds (how many)."]
    lines += [f"Threshold of the background (softmax score): {used}."] if used else ["No benchmark has a background."]
    if missing := [title for title, other in others.items() if other is None]:
        lines.append(f"Not there when this notebook ran: {', '.join(missing)}. `results/REPORT.md` compares all runs.")
    return " ".join(lines)


def by_class(result):
    """IoU of each class, percent, mean over seeds: a DataFrame of texts, columns (benchmark, unit), "" for classes without an IoU."""
    columns = {}
    for benchmark, by_unit in result["miou"].items():
        for unit in by_unit:
            of_seeds = [seed["iou"][benchmark][unit] for seed in result["seeds"]]
            columns[benchmark, unit] = {name: mean(dict(enumerate(of[name] for of in of_seeds))) for name in of_seeds[0]}
    return pd.DataFrame(columns).astype(float).map(lambda value: "" if pd.isna(value) else f"{value:.1f}")


def _spread(result, benchmark, unit):
    return mean_std(pd.Series([seed["miou"][benchmark][unit] for seed in result["seeds"]], dtype=float))


def _listed(changed):
    return ", ".join(f"`{key}` = {value}" for key, value in changed.items())
