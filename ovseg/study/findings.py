"""Tests of the paper's findings F1-F6 on our own runs: each holds, does not hold, or is undecided.

A comparison pairs two settings by seed and applies one-sided paired t-tests over the seeds at 5%. It holds if the first setting is better,
does not hold if the second is better, and is undecided otherwise or with fewer than two seeds. A finding holds if all its comparisons
hold. It does not hold if one of them fails at 5% divided by the number of comparisons; this correction keeps many comparisons from making
a failure likely by chance. Otherwise, or if a required run is missing, the finding is undecided.
"""

from dataclasses import dataclass, field

import pandas as pd
from scipy import stats

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.05
PIXELS = "pixels"
MARGIN = 1.0  # points of mIoU that "hardly matters" allows (F6)
ALL = "object+region+pixel"
LEVELS = {  # F1 to F3: the claim, and pairs of granularities, the first claimed to be better; None: untrained
    "F1": ("Each level of alignment alone beats the baseline", [("object", None), ("region", None), ("pixel", None)]),
    "F2": ("The pixel level alone helps most", [("pixel", "object"), ("pixel", "region")]),
    "F3": ("All three levels together are best", [(ALL, other) for other in ("object", "region", "pixel", "object+region")]),
}


@dataclass(frozen=True)
class Comparison:
    """Two settings on one group of benchmarks, mIoU in percent: is `first` better than `second`?

    means and deviations are (first, second) over n seeds; difference is the mean of the paired differences. p: p-value of the claim;
    against: p-value of its reverse. Both are NaN with fewer than two seeds.
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
    """code: "F1".."F6". claim: what the paper says. rule: how it is decided here, if more than the comparisons is needed."""

    code: str
    claim: str
    verdict: str
    comparisons: list[Comparison]
    rule: str = ""
    notes: list[str] = field(default_factory=list)


def compare(group, names, first, second, margin=None):
    """Compare two settings. first, second: mIoU by seed (Series); a `second` without seeds is used for every seed.

    With a margin, the claim is that the two are within that many points of each other (two one-sided tests), and its reverse is that
    they are further apart. Without one, the claim is that the first is better.
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
    """p-value of the one-sided t-test that the mean of paired differences exceeds `than`; NaN for fewer than two."""
    if len(differences) < 2:
        return float("nan")
    if differences.std() == 0:  # the t-test is undefined
        return float(differences.mean() <= than)
    return float(stats.ttest_1samp(differences, than, alternative="greater").pvalue)


def conclude(comparisons, missing=()):
    """A finding's verdict from its comparisons. missing: runs it lacks; with any missing, it cannot hold."""
    if any(c.against < LEVEL / len(comparisons) for c in comparisons):
        return NOT
    complete = comparisons and not missing
    return HOLDS if complete and all(c.verdict == HOLDS for c in comparisons) else UNDECIDED


class Compared:
    """Collects the comparisons of one finding, and what was not run. averages: from Results.averages."""

    def __init__(self, averages):
        self.averages, self.comparisons, self.missing = averages, [], []

    def seeds(self, run, group):
        """mIoU by seed, a Series."""
        rows = self.averages
        return rows[(rows["run"] == run) & (rows["group"] == group)].set_index("seed")["miou"]

    def add(self, names, first, second, margin=None):
        """Compare two runs on each group of benchmarks. first, second: run names, None if there is no such run. names: display names."""
        for group in dict.fromkeys(self.averages["group"]):
            pair = self.seeds(first, group), self.seeds(second, group)
            if any(seeds.empty for seeds in pair):
                self.missing.append(f"{group}: {' against '.join(names)} was not run")
            else:
                self.comparisons.append(compare(group, names, *pair, margin))

    def finding(self, code, claim, rule=""):
        return Finding(code, claim, conclude(self.comparisons, self.missing), self.comparisons, rule, self.missing)


def judge(results):
    """F1 to F6, a list of Finding. results: results.Results."""
    return [*(of_levels(results, code) for code in LEVELS), f4(results), f5(results), f6(results)]


def of_levels(results, code):
    """One of LEVELS, by pixels as in the paper's Table 3."""
    claim, pairs = LEVELS[code]
    found = Compared(results.averages("pixel"))
    for pair in pairs:
        runs = [results.find({"mgca.granularity": levels}) if levels else results.baseline for levels in pair]
        found.add(tuple(levels or "untrained" for levels in pair), *runs)
    return found.finding(code, claim)


def f4(results):
    """Fewer meta-points than pixels help, with a best count in the middle."""
    own = pd.concat([results.averages("meta-point"), results.averages("pixel").replace({"run": {results.default: PIXELS}})])
    found, counts = Compared(own), results.series("segment.meta_points")
    if len(counts) < 3 or own[own["run"] == results.default].empty:
        found.missing.append("at least three numbers of meta-points are needed, the default run's among them")
    else:
        for group in dict.fromkeys(own["group"]):
            fewest, *others = counts
            best = max(others, key=lambda points: found.seeds(counts[points], group).mean())
            of_best = found.seeds(counts[best], group)
            for name, run in ((PIXELS, PIXELS), (f"{fewest} meta-points", counts[fewest])):
                found.comparisons.append(compare(group, (f"{best} meta-points", name), of_best, found.seeds(run, group)))
    rule = (
        "The best count is that with the highest mean, the fewest points aside; it is compared with pixels and with the fewest points."
        " It is chosen on the runs that it is then compared on, which favours the finding."
    )
    return found.finding("F4", "Fewer meta-points than pixels help, with a best count in the middle", rule)


def f5(results):
    """Semi-hard k beats the hardest and the most trustworthy."""
    default, runs, found = results.parameters["mgca.k"], results.series("mgca.k"), Compared(results.averages())
    ends = [k for k in (min(runs), max(runs)) if k != default]
    for k in ends:
        found.add((f"k = {default:g}", f"k = {k:g}"), runs[default], runs[k])
    if len(ends) < 2:
        found.missing.append(f"values of k on both sides of {default:g} are needed")
    rule = "The smallest k that was run stands for the most trustworthy positives, the largest for the hardest."
    return found.finding("F5", "A semi-hard k beats the hardest and the most trustworthy positives", rule)


def f6(results):
    """beta hardly matters."""
    default, runs, found = results.parameters["mgca.beta"], results.series("mgca.beta"), Compared(results.averages())
    for beta in sorted(set(runs) - {default}):
        found.add((f"beta = {beta:g}", f"beta = {default:g}"), runs[beta], runs[default], MARGIN)
    if len(runs) < 2:
        found.missing.append("other values of beta are needed")
    rule = (
        f"A comparison holds here if the two are within {MARGIN:g} point of mIoU of each other (two one-sided tests at 5%), and does not"
        " if they are further apart."
    )
    return found.finding("F6", "beta hardly matters", rule)
