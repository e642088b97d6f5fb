"""The paper's findings F1-F6, looked for in our own runs: holds, does not hold, or undecided.

A comparison pairs two settings by seed. One-sided paired t-tests over the seeds decide at 5%: it holds if the first is better,
does not hold if the second is, and is undecided otherwise, or with fewer than two seeds. A finding holds if all of
its comparisons do. It does not hold if one does not, at 5% divided by the number of comparisons, so that many of them do
not make a failure likely by chance. It is undecided otherwise, and where a run that it needs is missing.
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

    means and deviations are (first, second) over n seeds; difference is their mean difference. p: of the test for the claim;
    against: of the test for its reverse. Both NaN with fewer than two seeds.
    """

    group: str
    first: str
    second: str
    means: tuple[float, float]
    deviations: tuple[float, float]
    n: int
    difference: float
    p: float
    against: float

    @property
    def verdict(self):
        return HOLDS if self.p < LEVEL else NOT if self.against < LEVEL else UNDECIDED


@dataclass(frozen=True)
class Finding:
    """code: "F1".."F6"; claim: what the paper says; rule: how it is decided here, if not by all comparisons alone."""

    code: str
    claim: str
    verdict: str
    comparisons: list[Comparison]
    rule: str = ""
    notes: list[str] = field(default_factory=list)


def compare(group, names, first, second, margin=None):
    """Compare two settings. first, second: mIoU by seed (Series); one that has no seed is the same for every seed.

    With a margin the claim is not that the first is better but that the two are within that many points of each other,
    by two one-sided tests; its reverse, that they are further apart.
    """
    if second.index.isna().all():
        paired = pd.DataFrame({"first": first, "second": second.iloc[0]})
    else:
        paired = pd.DataFrame({"first": first, "second": second}).dropna()
    d = paired["first"] - paired["second"]
    if margin is None:
        p, against = greater(d, 0), greater(-d, 0)
    else:
        p = max(greater(d, -margin), greater(-d, -margin))
        against = min(greater(d, margin), greater(-d, margin))
    means, deviations = (tuple(getattr(paired, how)()[["first", "second"]]) for how in ("mean", "std"))
    return Comparison(group, *names, means, deviations, len(d), float(d.mean()), p, against)


def greater(differences, than):
    """p of the one-sided t-test that the mean of paired differences is above `than`; NaN for fewer than two."""
    if len(differences) < 2:
        return float("nan")
    if differences.std() == 0:  # of which the test says nothing
        return float(differences.mean() <= than)
    return float(stats.ttest_1samp(differences, than, alternative="greater").pvalue)


def conclude(comparisons, missing=()):
    """A finding's verdict from its comparisons. missing: what it lacks; anything there leaves it undecided at best."""
    if any(c.against < LEVEL / len(comparisons) for c in comparisons):
        return NOT
    complete = comparisons and not missing
    return HOLDS if complete and all(c.verdict == HOLDS for c in comparisons) else UNDECIDED


def by_seed(rows):
    """mIoU by seed."""
    return rows.drop_duplicates("seed").set_index("seed")["miou"]


def judge(runs, unit):
    """F1 to F6, a list of Finding. runs: of tables.averages. unit: the segmenter's own, which F5 and F6 are judged with."""
    return [f1(runs), f2(runs), f3(runs), f4(runs), f5(runs, unit), f6(runs, unit)]


def _granularities(runs):
    """{group: {granularity: mIoU by seed}} by pixels, as the paper's Table 3; the baseline is NONE."""
    rows = tables.curve(runs, "granularity", unit="pixel")
    rows = pd.concat([tables.baseline(runs, unit="pixel"), rows])
    return {g: {name: by_seed(r) for name, r in rows[rows["group"] == g].groupby("granularity")} for g in dict.fromkeys(rows["group"])}


def _versus(code, claim, runs, pairs):
    """The finding that in each pair of granularities the first is better, by pixels."""
    comparisons, missing = [], []
    for group, rows in _granularities(runs).items():
        for first, second in pairs:
            if first in rows and second in rows:
                comparisons.append(compare(group, (first, second), rows[first], rows[second]))
            else:
                missing.append(f"{group}: {first} against {second} was not run")
    return Finding(code, claim, conclude(comparisons, missing), comparisons, notes=missing)


def f1(runs):
    """Each level alone beats the baseline."""
    pairs = [(level, tables.NONE) for level in ("object", "region", "pixel")]
    return _versus("F1", "Each level of alignment alone beats the baseline", runs, pairs)


def f2(runs):
    """The pixel level helps most."""
    return _versus("F2", "The pixel level alone helps most", runs, [("pixel", "object"), ("pixel", "region")])


def f3(runs):
    """All three are best."""
    others = ("object", "region", "pixel", "object+region")
    return _versus("F3", "All three levels together are best", runs, [("object+region+pixel", other) for other in others])


def f4(runs):
    """Fewer meta-points than pixels help, with a best count in the middle."""
    comparisons, missing = [], []
    rows = tables.at(runs, **tables.headline(runs))
    for group, found in rows.groupby("group", sort=False):
        pixel = by_seed(tables.at(found, unit="pixel"))
        counts = {int(points): by_seed(r) for points, r in tables.at(found, unit="meta-point").groupby("points")}
        if len(counts) < 3:
            missing.append(f"{group}: at least three numbers of meta-points are needed")
            continue
        fewest = min(counts)
        best = max(set(counts) - {fewest}, key=lambda points: counts[points].mean())
        comparisons.append(compare(group, (f"{best} meta-points", "pixels"), counts[best], pixel))
        comparisons.append(compare(group, (f"{best} meta-points", f"{fewest} meta-points"), counts[best], counts[fewest]))
    claim = "Fewer meta-points than pixels help, with a best count in the middle"
    rule = (
        "The best count is that with the highest mean, the fewest points aside; it is compared with pixels and with the fewest points."
        " It is chosen on the runs that it is then compared on, which favours the finding."
    )
    return Finding("F4", claim, conclude(comparisons, missing), comparisons, rule, missing)


def f5(runs, unit):
    """Semi-hard k beats the hardest and the most trustworthy."""
    default = tables.headline(runs)["k"]
    comparisons, missing = [], []
    for group, found in tables.curve(runs, "k", unit=unit).groupby("group", sort=False):
        ks = {k: by_seed(r) for k, r in found.groupby("k")}
        ends = [k for k in (min(ks), max(ks)) if k != default]
        comparisons += [compare(group, (f"k = {default:g}", f"k = {k:g}"), ks[default], ks[k]) for k in ends]
        if len(ends) < 2:
            missing.append(f"{group}: values of k on both sides of {default:g} are needed")
    claim = "A semi-hard k beats the hardest and the most trustworthy positives"
    rule = "The smallest k that was run stands for the most trustworthy positives, the largest for the hardest."
    return Finding("F5", claim, conclude(comparisons, missing), comparisons, rule, missing)


def f6(runs, unit):
    """beta hardly matters."""
    point = tables.headline(runs)
    default, own = point["beta"], point["granularity"]
    comparisons, missing = [], []
    rows = tables.curve(runs, "beta", unit=unit, granularity=own)
    for group, found in rows.groupby("group", sort=False):
        betas = {beta: by_seed(r) for beta, r in found.groupby("beta")}
        others = sorted(set(betas) - {default})
        comparisons += [compare(group, (f"beta = {b:g}", f"beta = {default:g}"), betas[b], betas[default], MARGIN) for b in others]
        if not others:
            missing.append(f"{group}: other values of beta are needed")
    rule = (
        f"A comparison holds here if the two are within {MARGIN:g} point of mIoU of each other (two one-sided tests at 5%), and does not"
        " if they are further apart."
    )
    return Finding("F6", "beta hardly matters", conclude(comparisons, missing), comparisons, rule, missing)
