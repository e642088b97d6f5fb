"""Findings on results made by hand: verdicts, the paired test against its closed form, what is paired with what."""

import math
import statistics

import pandas as pd
import pytest
from made import ALL, WITH, WITHOUT, baseline, results, run

from ovseg.study.findings import HOLDS, NOT, UNDECIDED, Finding, compare, judge


def series(*values):
    return pd.Series(values, index=pd.Index(range(len(values)), dtype=float))


def one_sided_p(differences):
    """Student's t with 2 degrees of freedom, whose distribution has a closed form: three seeds."""
    t = sum(differences) / 3 / (statistics.stdev(differences) / math.sqrt(3))
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def test_comparison_is_the_one_sided_paired_t_test_and_with_a_margin_two_of_them():
    second = series(40.0, 20.0, 30.0)  # seeds differ much more than the settings: only a paired test sees through it
    for differences, verdict in (([3.0, 3.1, 2.9], HOLDS), ([-3.0, -3.1, -2.9], NOT), ([1.0, -1.0, 0.5], UNDECIDED)):
        row = compare(WITH, ("a", "b"), second + differences, second)
        assert row["p"] == pytest.approx(one_sided_p(differences)) and row["against"] == pytest.approx(1 - row["p"])
        assert (row["verdict"], row["n"]) == (verdict, 3) and row["difference"] == pytest.approx(sum(differences) / 3)
        shift = row["told"] - row["difference"]  # the same spread, around what could have been told
        assert compare(WITH, ("a", "b"), second + differences + shift, second)["p"] == pytest.approx(0.05)
        assert row["means"] == pytest.approx((30 + sum(differences) / 3, 30)) and row["deviations"][1] == pytest.approx(10)
    near, far, between = [0.1, -0.2, 0.15], [4.0, 4.1, 3.8], [0.5, 2.5, -1.0]
    for differences, verdict in ((near, HOLDS), (far, NOT), ([-d for d in far], NOT), (between, UNDECIDED)):
        row = compare(WITH, ("a", "b"), second + differences, second, margin=1)
        assert row["verdict"] == verdict
        assert row["p"] == pytest.approx(max(one_sided_p([d + 1 for d in differences]), one_sided_p([1 - d for d in differences])))
        assert row["against"] == pytest.approx(min(one_sided_p([d - 1 for d in differences]), one_sided_p([-d - 1 for d in differences])))


def test_seeds_are_paired():
    row = compare(WITH, ("a", "b"), series(1.0, 2.0, 3.0), series(0.0, 0.5))
    assert row["n"] == 2 and row["difference"] == pytest.approx(1.25)  # of the common seeds
    row = compare(WITH, ("a", "b"), series(11.0, 12.0, 13.0), pd.Series([10.0], index=pd.Index([float("nan")])))
    assert row["n"] == 3 and row["p"] == pytest.approx(one_sided_p((1, 2, 3)))  # a baseline has no seed: it is paired with every seed
    row = compare(WITH, ("a", "b"), series(50.0), series(10.0))
    assert row["verdict"] == UNDECIDED and row["n"] == 1 and math.isnan(row["p"])
    assert compare(WITH, ("a", "b"), series(2.0, 3.0), series(1.0, 2.0))["verdict"] == HOLDS  # equal differences
    assert compare(WITH, ("a", "b"), series(1.0, 2.0), series(2.0, 3.0))["verdict"] == NOT


def test_verdict_of_a_finding():
    for ps, missing, expected in (
        *(([0.01, 0.04], [], HOLDS), ([0.01, 0.3], [], UNDECIDED), ([0.01, 0.99], [], NOT), ([], [], UNDECIDED)),
        *(([0.01] * 5 + [0.97], [], UNDECIDED), ([0.01], ["a run"], UNDECIDED), ([0.999], ["a run"], NOT)),  # one of six fails by chance
    ):
        rows = [{"against": 1 - p, "verdict": HOLDS if p < 0.05 else NOT if p > 0.95 else UNDECIDED} for p in ps]
        assert Finding("F0", "", "", rows, missing).verdict == expected


def granularities(group=WITH, **levels):
    """Runs of the granularity table by pixels. levels: {name: mIoU of three seeds} that replace the paper's order; None leaves one out."""
    values = {"object": (30, 31, 32), "region": (29, 30, 31.5), "pixel": (36, 37.5, 38), "object+region": (33, 34, 35), ALL: (40, 41, 42.5)}
    values = {name: miou for name, miou in (values | levels).items() if miou is not None}
    runs = [run({} if name == ALL else {"mgca.granularity": name}, pixel=miou, group=group) for name, miou in values.items()]
    return [baseline(20, group), *runs]


def test_f1_f2_and_f3_hold_in_the_papers_order_only():
    others = [run({"mgca.tau": 0.1}, pixel=(1, 2, 3)), run({"mgca.granularity": "pixel", "mgca.tau": 0.1}, pixel=(1, 2, 3))]
    f1, f2, f3, *_ = judge(results(*granularities(), *others))  # others are not compared
    assert [f1.verdict, f2.verdict, f3.verdict] == [HOLDS] * 3 and {row["second"] for row in f1.comparisons} == {"untrained"}
    assert [row["first"] for row in f3.comparisons] == [ALL] * 4
    assert judge(results(*granularities(region=(10, 11, 10.5))))[0].verdict == NOT  # below the baseline
    weak = judge(results(*granularities(), *granularities(WITHOUT, pixel=(20, 21, 21.5))))[1]
    assert weak.verdict == NOT and {row["benchmarks"] for row in weak.comparisons if row["verdict"] == NOT} == {WITHOUT}
    assert judge(results(*granularities(**{"object+region": (40.5, 41.5, 41)})))[2].verdict == UNDECIDED
    for finding in judge(results(*granularities(region=None)))[:3]:
        assert finding.verdict == UNDECIDED and "region" in finding.missing[0] and "was not run" in finding.missing[0]


def test_f4_holds_with_a_best_count_in_the_middle_only():
    many = run({"segment.meta_points": 64}, (39, 40, 41))
    cases = ((30, 31, 32.5), (38, 39.5, 40), HOLDS), ((50, 51, 52.5), (38, 39, 40), NOT), ((30, 31, 32), (45, 46, 47.5), NOT)
    for fewest, pixels, verdict in cases:
        f4 = judge(results(run({}, (40, 41, 42), pixels), many, run({"segment.meta_points": 9}, fewest)))[3]
        pairs = [(row["first"], row["second"]) for row in f4.comparisons]
        assert f4.verdict == verdict and pairs == [("36 meta-points", "pixels"), ("36 meta-points", "9 meta-points")]


def test_f5_compares_the_default_with_both_ends_and_f6_holds_when_no_beta_is_further_than_a_point_away():
    ks = [run({"mgca.k": k}, values) for k, values in {0: (30, 31, 32), 0.02: (90, 91, 92), 0.4: (20, 21, 22.5)}.items()]
    betas = [run({"mgca.beta": b}, values) for b, values in {0.2: (39.9, 41.2, 42), 0.01: (40.1, 40.9, 42.1)}.items()]
    elsewhere = run({"mgca.beta": 0.01, "mgca.granularity": "object+region"}, (10, 11, 12))
    *_, f5, f6 = judge(results(run({}, (40, 41, 42)), *ks, *betas, elsewhere))
    assert f5.verdict == f6.verdict == HOLDS and [row["second"] for row in f5.comparisons] == ["k = 0", "k = 0.4"]
    assert [row["first"] for row in f6.comparisons] == ["beta = 0.01", "beta = 0.2"]
    *_, f5, f6 = judge(results(run({}, (40, 41, 42)), *ks[:2], *betas, run({"mgca.beta": 0.5}, (30, 31.1, 32))))
    assert f5.verdict == UNDECIDED and "both sides" in f5.missing[0] and f6.verdict == NOT


def test_the_default_run_alone_decides_nothing_and_every_finding_says_why():
    findings = judge(results(run({}, (40, 41, 42), (38, 39, 40)), baseline(20), run({"segment.meta_points": 9}, (30, 31, 32))))
    assert [f.code for f in findings] == ["F1", "F2", "F3", "F4", "F5", "F6"]
    assert {f.verdict for f in findings} == {UNDECIDED} and all(f.missing for f in findings)
    assert "three numbers" in findings[3].missing[0] and not findings[3].comparisons
