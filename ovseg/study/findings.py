"""Tests of the paper's findings F1-F6 on our own runs: each holds, does not hold, or is undecided.

A comparison pairs two settings by seed and applies one-sided paired t-tests over the seeds at 5%. It holds if the first setting is better,
does not hold if the second is better, and is undecided otherwise or with fewer than two seeds. A finding holds if all its comparisons do.
It does not hold if one fails at 5% divided by their number, so that many comparisons do not make a failure likely by chance. Otherwise, or
if a required run is missing, it is undecided.
"""

from dataclasses import dataclass, field

import pandas as pd
from scipy import stats

from .results import DEFAULT, by_seed

HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.05
PIXELS = "pixels"
MARGIN = 1.0  # points of mIoU that "hardly matters" allows (F6)
LEVELS = {  # F1 to F3: the claim, and pairs of granularities, the first claimed to be better; None: untrained
    "F1": ("Each level of alignment alone beats the baseline", [("object", None), ("region", None), ("pixel", None)]),
    "F2": ("The pixel level alone helps most", [("pixel", "object"), ("pixel", "region")]),
    "F3": ("All three levels together are best", [("object+region+pixel", o) for o in ("object", "region", "pixel", "object+region")]),
}


@dataclass
class Finding:
    """A finding of the paper, "F1".."F6", and the comparisons that decide it, from `compare`. claim: what the paper says. rule: how it is
    decided here, if not by comparisons alone. missing: sentences on what was not run."""

    code: str
    claim: str
    rule: str = ""
    comparisons: list = field(default_factory=list)
    missing: list = field(default_factory=list)

    def add(self, averages, names, first, second, margin=None):
        """Compare two runs on each group of benchmarks. averages: from Results.averages. first, second: runs, or None if there is none.
        names: how to call them. margin: as in `compare`."""
        for group in dict.fromkeys(averages["group"]):
            pair = by_seed(averages, first, group), by_seed(averages, second, group)
            if any(seeds.empty for seeds in pair):
                self.missing.append(f"{group}: {' against '.join(names)} was not run")
            else:
                self.comparisons.append(compare(group, names, *pair, margin))

    @property
    def verdict(self):
        if any(row["against"] < LEVEL / len(self.comparisons) for row in self.comparisons):
            return NOT
        complete = self.comparisons and not self.missing
        return HOLDS if complete and all(row["verdict"] == HOLDS for row in self.comparisons) else UNDECIDED


def compare(group, names, first, second, margin=None):
    """Compare two settings on a group of benchmarks, pairing their seeds. Returns a dict, a row of a table. first, second: mIoU by seed
    (Series), in percent; a `second` without seeds is used for every seed. The claim is that the first is better or, with a margin, that
    they are within that many points of each other (two one-sided tests). In the row, p is of the claim and `against` of its reverse, both
    NaN with fewer than two seeds; difference is the mean over pairs of seeds. `told`: the smallest that these n seeds could have told, at
    which p = LEVEL, t * std(d) / sqrt(n); d: the differences; t: the quantile 1 - LEVEL of Student's t with n - 1 degrees of freedom."""
    paired = pd.DataFrame({"first": first, "second": second.iloc[0] if second.index.isna().all() else second}).dropna()
    d = paired["first"] - paired["second"]
    p, against = greater(d, -(margin or 0)), greater(-d, margin or 0)
    if margin:
        p, against = max(p, greater(-d, -margin)), min(against, greater(d, margin))
    told = stats.t.ppf(1 - LEVEL, len(d) - 1) * d.std() / len(d) ** 0.5
    row = {"benchmarks": group, "first": names[0], "second": names[1], "means": tuple(paired.mean()), "deviations": tuple(paired.std())}
    verdict = HOLDS if p < LEVEL else NOT if against < LEVEL else UNDECIDED
    return row | {"difference": float(d.mean()), "told": float(told), "n": len(d), "p": p, "against": against, "verdict": verdict}


def greater(differences, than):
    """p-value of the one-sided t-test that the mean of paired differences exceeds `than`; NaN for fewer than two."""
    if len(differences) > 1 and differences.std() == 0:  # the t-test is undefined
        return float(differences.mean() <= than)
    return float(stats.ttest_1samp(differences, than, alternative="greater").pvalue) if len(differences) > 1 else float("nan")


def judge(results):
    """F1 to F6, a list of Finding. results: results.Results. F1 to F3 are by pixels, as in the paper's Table 3."""
    findings, averages = [Finding(code, claim) for code, (claim, _) in LEVELS.items()], results.averages()
    for finding in findings:
        for pair in LEVELS[finding.code][1]:
            runs = [results.find({"mgca.granularity": levels}) if levels else results.baseline for levels in pair]
            finding.add(results.averages("pixel"), tuple(levels or "untrained" for levels in pair), *runs)

    default, runs = results.parameters["mgca.k"], results.series("mgca.k")
    rule = "The smallest k that was run stands for the most trustworthy positives, the largest for the hardest."
    f5 = Finding("F5", "A semi-hard k beats the hardest and the most trustworthy positives", rule)
    ends = [k for k in (min(runs), max(runs)) if k != default]
    for k in ends:
        f5.add(averages, (f"k = {default:g}", f"k = {k:g}"), runs[default], runs[k])
    if len(ends) < 2:
        f5.missing.append(f"values of k on both sides of {default:g} are needed")

    default, runs = results.parameters["mgca.beta"], results.series("mgca.beta")
    rule = f"A comparison holds here if the two are within {MARGIN:g} point of mIoU of each other (two one-sided tests at 5%), and does "
    f6 = Finding("F6", "beta hardly matters", f"{rule}not if they are further apart.")
    for beta in (beta for beta in runs if beta != default):
        f6.add(averages, (f"beta = {beta:g}", f"beta = {default:g}"), runs[beta], runs[default], MARGIN)
    if len(runs) < 2:
        f6.missing.append("other values of beta are needed")
    return [*findings, judge_meta_points(results), f5, f6]


def judge_meta_points(results):
    """F4, by the number of meta-points."""
    rule = "The best count is that with the highest mean, the fewest points aside; it is compared with pixels and with the fewest points. "
    rule += "It is chosen on the runs that it is then compared on, which favours the finding."
    finding = Finding("F4", "Fewer meta-points than pixels help, with a best count in the middle", rule)
    pixels = results.averages("pixel").replace({"run": {DEFAULT: PIXELS}})
    averages, counts = pd.concat([results.averages("meta-point"), pixels]), results.series("segment.meta_points")
    if len(counts) < 3 or DEFAULT not in set(averages["run"]):
        finding.missing.append("at least three numbers of meta-points are needed, the default run's among them")
        return finding
    fewest, *others = counts
    for group, rows in averages.groupby("group", sort=False):
        best = max(others, key=lambda points: by_seed(averages, counts[points], group).mean())
        for name, run in ((PIXELS, PIXELS), (f"{fewest} meta-points", counts[fewest])):
            finding.add(rows, (f"{best} meta-points", name), counts[best], run)
    return finding
