"""Findings on results made by hand: verdicts, the paired test against its closed form, what is paired with what."""

import math

import pandas as pd
import pytest
from made import ALL, WITH, WITHOUT, baseline, inferred, results, run

from ovseg.study import findings
from ovseg.study.findings import HOLDS, NOT, UNDECIDED


def series(*values):
    return pd.Series(values, index=pd.Index(range(len(values)), dtype=float))


def one_sided_p(differences):
    """Student's t with 2 degrees of freedom, whose distribution has a closed form: three seeds."""
    assert len(differences) == 3
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    t = mean / (deviation / math.sqrt(3))
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


@pytest.mark.parametrize("differences, verdict", [((3.0, 3.1, 2.9), HOLDS), ((-3.0, -3.1, -2.9), NOT), ((1.0, -1.0, 0.5), UNDECIDED)])
def test_comparison_is_the_one_sided_paired_t_test(differences, verdict):
    second = (40.0, 20.0, 30.0)  # seeds differ much more than the settings: only a paired test sees through it
    first = [a + b for a, b in zip(second, differences, strict=True)]
    found = findings.compare(WITH, ("a", "b"), series(*first), series(*second))
    assert found.p == pytest.approx(one_sided_p(differences)) and found.verdict == verdict
    assert found.n == 3 and found.difference == pytest.approx(sum(differences) / 3)
    assert found.means == pytest.approx((sum(first) / 3, 30)) and found.deviations[1] == pytest.approx(10)


def test_only_common_seeds_are_paired():
    first, second = series(1.0, 2.0, 3.0), series(0.0, 0.5)
    found = findings.compare(WITH, ("a", "b"), first, second)
    assert found.n == 2 and found.difference == pytest.approx(1.25)


def test_a_baseline_without_a_seed_is_paired_with_every_seed():
    nothing = pd.Series([10.0], index=pd.Index([float("nan")]))
    found = findings.compare(WITH, ("a", "b"), series(11.0, 12.0, 13.0), nothing)
    assert found.n == 3 and found.p == pytest.approx(one_sided_p((1, 2, 3)))


def test_one_seed_decides_nothing():
    found = findings.compare(WITH, ("a", "b"), series(50.0), series(10.0))
    assert found.verdict == UNDECIDED and found.n == 1 and math.isnan(found.p)


def test_differences_without_any_spread():
    assert findings.compare(WITH, ("a", "b"), series(2.0, 3.0), series(1.0, 2.0)).verdict == HOLDS
    assert findings.compare(WITH, ("a", "b"), series(1.0, 2.0), series(2.0, 3.0)).verdict == NOT


def test_greater_by_the_closed_form():
    d = pd.Series([1.0, 2.0, 4.0])
    for than in (-1, 0, 1.5, 3):
        assert findings.greater(d, than) == pytest.approx(one_sided_p([x - than for x in d]))
    assert math.isnan(findings.greater(d[:1], 0))


def test_within_a_margin_is_two_one_sided_tests():
    second = series(40.0, 20.0, 30.0)
    near, far, between = ([0.1, -0.2, 0.15], [4.0, 4.1, 3.8], [0.5, 2.5, -1.0])
    for differences, verdict in ((near, HOLDS), (far, NOT), ([-d for d in far], NOT), (between, UNDECIDED)):
        found = findings.compare(WITH, ("a", "b"), second + differences, second, margin=1)
        assert found.verdict == verdict
        assert found.p == pytest.approx(max(one_sided_p([d + 1 for d in differences]), one_sided_p([1 - d for d in differences])))
        assert found.against == pytest.approx(min(one_sided_p([d - 1 for d in differences]), one_sided_p([-d - 1 for d in differences])))


def comparison(p):
    return findings.Comparison(WITH, "a", "b", (1, 2), (0, 0), 3, 1.0, p, 1 - p)


def test_conclusion():
    assert findings.conclude([comparison(0.01), comparison(0.04)]) == HOLDS
    assert findings.conclude([comparison(0.01), comparison(0.3)]) == UNDECIDED
    assert findings.conclude([comparison(0.01), comparison(0.99)]) == NOT
    assert findings.conclude([comparison(0.01)] * 5 + [comparison(0.97)]) == UNDECIDED  # one of six by chance
    assert findings.conclude([comparison(0.01)], ["something"]) == UNDECIDED
    assert findings.conclude([comparison(0.999)], ["something"]) == NOT
    assert findings.conclude([]) == UNDECIDED


def granularities(group=WITH, **levels):
    """Runs of the granularity table by pixels; levels: {name: mIoU of three seeds}, None leaves one out."""
    values = {
        "object": (30, 31, 32),
        "region": (29, 30, 31.5),
        "pixel": (36, 37.5, 38),
        "object+region": (33, 34, 35),
        ALL: (40, 41, 42.5),
    } | levels
    found = [baseline(20, group)]
    for name, miou in values.items():
        if miou is not None:
            found.append(run({} if name == ALL else {"mgca.granularity": name}, pixel=miou, group=group))
    return found


def test_the_papers_own_order_makes_f1_f2_and_f3_hold():
    r = results(*granularities())
    assert [findings.of_levels(r, code).verdict for code in ("F1", "F2", "F3")] == [HOLDS] * 3
    assert [c.first for c in findings.of_levels(r, "F3").comparisons] == [ALL] * 4
    assert {c.second for c in findings.of_levels(r, "F1").comparisons} == {"untrained"}


def test_a_level_that_was_not_run_leaves_the_finding_undecided_and_is_named():
    r = results(*granularities(region=None))
    for finding in (findings.of_levels(r, code) for code in ("F1", "F2", "F3")):
        assert finding.verdict == UNDECIDED and "region" in finding.notes[0] and "was not run" in finding.notes[0]


def test_one_level_below_the_baseline_undoes_f1():
    assert findings.of_levels(results(*granularities(region=(10, 11, 10.5))), "F1").verdict == NOT


def test_a_weak_pixel_level_undoes_f2_on_one_group_alone():
    r = results(*granularities(), *granularities(WITHOUT, pixel=(20, 21, 21.5)))
    found = findings.of_levels(r, "F2")
    assert found.verdict == NOT and {c.group for c in found.comparisons if c.verdict == NOT} == {WITHOUT}


def test_f3_is_undecided_when_another_row_is_within_noise():
    r = results(*granularities(**{"object+region": (40.5, 41.5, 41)}))
    assert findings.of_levels(r, "F3").verdict == UNDECIDED


def test_runs_at_other_values_are_no_part_of_the_comparisons():
    """A run at another tau was once counted as one more seed of the default run."""
    r = results(*granularities())
    others = [
        run({"mgca.tau": 0.1}, pixel=(1, 2, 3)),
        run({"train.lr": 0.004}, pixel=(90, 91, 99)),
        run({"mgca.granularity": "pixel", "mgca.tau": 0.1}, pixel=(1, 2, 3)),
    ]
    assert findings.judge(results(*granularities(), *others)) == findings.judge(r)


def test_f4_holds_with_a_best_count_in_the_middle():
    r = results(run({}, (40, 41, 42), (38, 39.5, 40)), inferred(64, (39, 40, 41)), inferred(9, (30, 31, 32.5)))
    found = findings.f4(r)
    assert found.verdict == HOLDS and {(c.first, c.second) for c in found.comparisons} == {
        ("36 meta-points", "pixels"),
        ("36 meta-points", "9 meta-points"),
    }


@pytest.mark.parametrize("fewest, pixels", [((50, 51, 52.5), (38, 39, 40)), ((30, 31, 32), (45, 46, 47.5))])
def test_f4_does_not_hold_when_the_fewest_are_best_or_pixels_are(fewest, pixels):
    r = results(run({}, (40, 41, 42), pixels), inferred(64, (39, 40, 41)), inferred(9, fewest))
    assert findings.f4(r).verdict == NOT


def test_f4_needs_three_counts():
    found = findings.f4(results(run({}, (40, 41, 42), (38, 39, 40)), inferred(9, (30, 31, 32))))
    assert found.verdict == UNDECIDED and "three numbers" in found.notes[0] and not found.comparisons


def test_f5_compares_the_default_with_both_ends():
    ks = [run({"mgca.k": k}, values) for k, values in {0: (30, 31, 32), 0.02: (90, 91, 92), 0.4: (20, 21, 22.5)}.items()]
    found = findings.f5(results(run({}, (40, 41, 42.5)), *ks))
    assert found.verdict == HOLDS and [c.second for c in found.comparisons] == ["k = 0", "k = 0.4"]
    found = findings.f5(results(run({}, (40, 41, 42.5)), *ks[:2]))
    assert found.verdict == UNDECIDED and "both sides" in found.notes[0]


def test_f6_holds_when_no_beta_is_further_than_a_point_away():
    betas = [run({"mgca.beta": b}, values) for b, values in {0.01: (40.1, 40.9, 42.1), 0.2: (39.9, 41.2, 42)}.items()]
    elsewhere = run({"mgca.beta": 0.01, "mgca.granularity": "object+region"}, (10, 11, 12))
    assert findings.f6(results(run({}, (40, 41, 42)), *betas, elsewhere)).verdict == HOLDS
    far = run({"mgca.beta": 0.5}, (30, 31.1, 32))
    assert findings.f6(results(run({}, (40, 41, 42)), *betas, far)).verdict == NOT
    assert findings.f6(results(run({}, (40, 41, 42)))).verdict == UNDECIDED


def test_all_six_are_judged_in_order():
    r = results(run({}, (40, 41, 42), (38, 39, 40)), baseline(20))
    assert [f.code for f in findings.judge(r)] == ["F1", "F2", "F3", "F4", "F5", "F6"]
    assert {f.verdict for f in findings.judge(r)} == {UNDECIDED} and all(f.notes for f in findings.judge(r))
