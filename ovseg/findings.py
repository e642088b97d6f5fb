"""The paper's findings F1-F6, looked for in our own runs: holds, does not hold, or undecided.

A comparison pairs two settings by seed. A one-sided paired t-test over the seeds decides at 5%: it holds if the first is
better, does not hold if the second is, and is undecided otherwise or with fewer than two seeds. A finding
holds if all of its comparisons do, and does not hold if one of them does not.
"""

from dataclasses import dataclass, field

import pandas as pd
from scipy import stats

from . import tables

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.05
MARGIN = 1.0  # points of mIoU that "hardly matters" allows (F6)


@dataclass(frozen=True)
class Comparison:
    """Two settings on one group of benchmarks, mIoU in percent: is `first` better than `second`?

    means and deviations are (first, second) over n seeds; difference is their mean difference, p that of the test.
    """

    group: str
    first: str
    second: str
    means: tuple[float, float]
    deviations: tuple[float, float]
    n: int
    difference: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Finding:
    """code: "F1".."F6"; claim: what the paper says; rule: how it is decided here, if not by all comparisons alone."""

    code: str
    claim: str
    verdict: str
    comparisons: list[Comparison]
    rule: str = ""
    notes: list[str] = field(default_factory=list)


def compare(group, names, first, second):
    """Compare two settings. first, second: mIoU by seed (Series); one that has no seed is the same for every seed."""
    if first.index.isna().all() and second.index.isna().all():
        paired = pd.DataFrame({"first": first.to_numpy(), "second": second.to_numpy()})
    elif second.index.isna().all():
        paired = pd.DataFrame({"first": first, "second": second.iloc[0]})
    else:
        paired = pd.DataFrame({"first": first, "second": second}).dropna()
    differences = paired["first"] - paired["second"]
    n, p = len(paired), float("nan")
    if n >= 2:
        p = (
            float(stats.ttest_1samp(differences, 0, alternative="greater").pvalue)
            if differences.std() > 0
            else float(differences.mean() <= 0)
        )
    verdict = HOLDS if p < LEVEL else NOT if p > 1 - LEVEL else UNDECIDED
    means, deviations = (tuple(getattr(paired, how)()[["first", "second"]]) for how in ("mean", "std"))
    return Comparison(group, *names, means, deviations, n, float(differences.mean()) if n else float("nan"), p, verdict)


def conclude(verdicts):
    """A finding's verdict from those of its parts; undecided if there are none."""
    verdicts = list(verdicts)
    if NOT in verdicts:
        return NOT
    return HOLDS if verdicts and all(v == HOLDS for v in verdicts) else UNDECIDED


def by_seed(rows):
    """mIoU by seed."""
    return rows.drop_duplicates("seed").set_index("seed")["miou"]


def judge(runs, unit):
    """F1 to F6, a list of Finding. runs: of tables.averages. unit: the segmenter's own, which F5 and F6 are judged with."""
    return [f1(runs), f2(runs), f3(runs), f4(runs), f5(runs, unit), f6(runs, unit)]


def _granularities(runs):
    """{group: {granularity: mIoU by seed}} by pixels, as the paper's Table 3; MaskCLIP is NONE."""
    rows = tables.curve(runs, "granularity", unit="pixel")
    rows = pd.concat([tables.at(runs, run="maskclip", unit="pixel"), rows])
    return {g: {name: by_seed(r) for name, r in rows[rows["group"] == g].groupby("granularity")} for g in dict.fromkeys(rows["group"])}


def _versus(found, pairs):
    """Comparisons of the granularities in pairs, where both were run."""
    return [compare(g, (a, b), rows[a], rows[b]) for g, rows in found.items() for a, b in pairs if a in rows and b in rows]


def f1(runs):
    """Each level alone beats the baseline."""
    comparisons = _versus(_granularities(runs), [(level, tables.NONE) for level in ("object", "region", "pixel")])
    return Finding("F1", "Each level of alignment alone beats the baseline", conclude(c.verdict for c in comparisons), comparisons)


def f2(runs):
    """The pixel level helps most."""
    comparisons = _versus(_granularities(runs), [("pixel", "object"), ("pixel", "region")])
    return Finding("F2", "The pixel level alone helps most", conclude(c.verdict for c in comparisons), comparisons)


def f3(runs):
    """All three are best."""
    others = ("object", "region", "pixel", "object+region")
    comparisons = _versus(_granularities(runs), [("object+region+pixel", other) for other in others])
    return Finding("F3", "All three levels together are best", conclude(c.verdict for c in comparisons), comparisons)


def f4(runs):
    """Fewer meta-points than pixels help, with a best count in the middle."""
    comparisons, verdicts, notes = [], [], []
    rows = tables.at(runs, **tables.headline(runs))
    for group, found in rows.groupby("group", sort=False):
        pixel = by_seed(tables.at(found, unit="pixel"))
        counts = {int(points): by_seed(r) for points, r in tables.at(found, unit="meta-point").groupby("points")}
        if len(counts) < 3:
            notes.append(f"{group}: fewer than three numbers of meta-points were run")
            verdicts.append(UNDECIDED)
            continue
        best, fewest = max(counts, key=lambda points: counts[points].mean()), min(counts)
        comparisons.append(compare(group, (f"{best} meta-points", "pixels"), counts[best], pixel))
        verdicts.append(comparisons[-1].verdict)
        if best == fewest:
            notes.append(f"{group}: the fewest points tried, {fewest}, are the best, so that no best count lies in the middle")
            verdicts.append(NOT)
        else:
            comparisons.append(compare(group, (f"{best} meta-points", f"{fewest} meta-points"), counts[best], counts[fewest]))
            verdicts.append(comparisons[-1].verdict)
    rule = "The best count is the one with the highest mean over the same runs; it is compared with pixels and with the fewest points."
    return Finding(
        "F4", "Fewer meta-points than pixels help, with a best count in the middle", conclude(verdicts), comparisons, rule, notes
    )


def f5(runs, unit):
    """Semi-hard k beats the hardest and the most trustworthy."""
    default = tables.headline(runs)["k"]
    rows = tables.curve(runs, "k", unit=unit)
    comparisons, notes = [], []
    for group, found in rows.groupby("group", sort=False):
        ks = {k: by_seed(r) for k, r in found.groupby("k")}
        ends = [k for k in (min(ks), max(ks)) if k != default]
        comparisons += [compare(group, (f"k = {default:g}", f"k = {k:g}"), ks[default], ks[k]) for k in ends]
        if len(ends) < 2:
            notes.append(f"{group}: values of k on both sides of {default:g} are needed")
    verdict = UNDECIDED if notes else conclude(c.verdict for c in comparisons)
    return Finding("F5", "A semi-hard k beats the hardest and the most trustworthy positives", verdict, comparisons, notes=notes)


def f6(runs, unit):
    """beta hardly matters."""
    default = tables.headline(runs)["beta"]
    rows = tables.curve(runs, "beta", unit=unit)
    comparisons, verdicts = [], []
    for group, found in rows.groupby("group", sort=False):
        betas = {beta: by_seed(r) for beta, r in found.groupby("beta")}
        noise = betas[default].std() if len(betas[default]) > 1 else float("inf")
        for beta in sorted(set(betas) - {default}):
            c = compare(group, (f"beta = {beta:g}", f"beta = {default:g}"), betas[beta], betas[default])
            change = abs(c.difference)
            verdicts.append(HOLDS if change <= MARGIN else NOT if change > MARGIN + 2 * noise else UNDECIDED)
            comparisons.append(c)
    rule = (
        f"Judged by size, not by a test: it holds if every beta stays within {MARGIN:g} point of the default's mIoU, and does not"
        " hold if one is further away than that and twice the standard deviation of the headline's seeds."
    )
    return Finding("F6", "beta hardly matters", conclude(verdicts), comparisons, rule)
