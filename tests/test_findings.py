"""Findings on results made by hand: verdicts, the paired test against its closed form, what is paired with what."""

import math

import pandas as pd
import pytest

from ovseg.study import findings, tables
from ovseg.study.findings import HOLDS, NOT, UNDECIDED

WITH, WITHOUT = tables.GROUPS
ALL = "object+region+pixel"
DEFAULT = {"granularity": ALL, "alpha": 0.4, "beta": 0.05, "k": 0.06}


def row(run, miou, seed=0, group=WITH, unit="pixel", points=None, **point):
    return {"run": run, "seed": seed, "group": group, "unit": unit, "points": points, "dense": "maskclip", "miou": miou} | DEFAULT | point


def seeds(run, values, **point):
    """A run at seeds 0, 1, ...; the headline's own is that of seed 0."""
    return [row(run if seed == 0 else f"{run}-{seed}", value, seed, **point) for seed, value in enumerate(values)]


def baseline(miou, group=WITH):
    nothing = dict.fromkeys(DEFAULT) | {"granularity": tables.NONE}
    return [row("ablations/dense/maskclip", miou, seed=None, group=group, **nothing)]


def frame(*parts):
    runs = pd.DataFrame([r for part in parts for r in part])
    return runs.astype({name: float for name in ("seed", "points", "alpha", "beta", "k")})


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
    """Runs of the granularity table; levels: {name: mIoU of three seeds}."""
    default = {
        "object": (30, 31, 32),
        "region": (29, 30, 31.5),
        "pixel": (36, 37.5, 38),
        "object+region": (33, 34, 35),
        ALL: (40, 41, 42.5),
    }
    parts = [baseline(20, group)]
    for name, values in (default | {k.replace("_", "+"): v for k, v in levels.items()}).items():
        parts.append(seeds("mgca" if name == ALL else name, values, group=group, granularity=name))
    return [r for part in parts for r in part]


def test_the_papers_own_order_makes_f1_f2_and_f3_hold():
    runs = frame(granularities(), granularities(WITHOUT))
    for finding, comparisons in ((findings.f1(runs), 6), (findings.f2(runs), 4), (findings.f3(runs), 8)):
        assert finding.verdict == HOLDS and len(finding.comparisons) == comparisons
        assert {c.group for c in finding.comparisons} == {WITH, WITHOUT}


def test_a_level_that_was_not_run_leaves_the_finding_undecided():
    runs = frame([row for row in granularities() if row["granularity"] != "pixel"])
    for finding in (findings.f1(runs), findings.f2(runs), findings.f3(runs)):
        assert finding.verdict == UNDECIDED and any("pixel" in note and "not run" in note for note in finding.notes)


def test_one_level_below_the_baseline_undoes_f1():
    finding = findings.f1(frame(granularities(region=(10, 10.1, 10.2))))
    assert finding.verdict == NOT
    assert {c.first: c.verdict for c in finding.comparisons} == {"object": HOLDS, "region": NOT, "pixel": HOLDS}


def test_a_weak_pixel_level_undoes_f2_on_one_group_alone():
    runs = frame(granularities(), granularities(WITHOUT, pixel=(25, 26, 26.9)))
    assert findings.f2(runs).verdict == NOT and findings.f1(runs).verdict == HOLDS


def test_f3_is_undecided_when_another_row_is_within_noise():
    assert findings.f3(frame(granularities(object_region=(41, 40, 43)))).verdict == UNDECIDED


def test_units_other_than_pixels_and_runs_at_other_points_are_no_part_of_the_granularity_table():
    noise = seeds("mgca", (1, 1, 1), unit="meta-point", points=36) + seeds("k", (1, 1, 1), k=0.4)
    assert findings.f3(frame(granularities(), noise)).verdict == HOLDS


def sweep(**counts):
    """The headline's decoders by pixels and at numbers of meta-points; counts: {"m36": mIoU of three seeds}."""
    parts = [seeds("mgca", counts.pop("pixel"))]
    parts += [seeds("mgca", values, unit="meta-point", points=int(name[1:])) for name, values in counts.items()]
    return frame(*parts)


def test_f4_holds_with_a_best_count_in_the_middle():
    finding = findings.f4(sweep(pixel=(30, 31, 32), m64=(31, 32, 33), m36=(33, 34, 35.5), m9=(29, 30, 31)))
    assert finding.verdict == HOLDS
    assert [(c.first, c.second) for c in finding.comparisons] == [("36 meta-points", "pixels"), ("36 meta-points", "9 meta-points")]


def test_f4_does_not_hold_when_the_fewest_are_best_or_pixels_are():
    finding = findings.f4(sweep(pixel=(30, 31, 32), m64=(31, 32, 33), m36=(33, 34, 35), m9=(36, 37, 38.1)))
    assert finding.verdict == NOT and [c.verdict for c in finding.comparisons] == [HOLDS, NOT]
    assert findings.f4(sweep(pixel=(40, 41, 42), m64=(31, 32, 33), m36=(33, 34, 35.5), m9=(29, 30, 31))).verdict == NOT
    close = sweep(pixel=(30, 31, 32), m64=(31, 32, 33), m36=(33, 34, 35), m9=(32, 34, 36.1))
    assert findings.f4(close).verdict == UNDECIDED  # the fewest are ahead, within noise


def test_f4_needs_three_counts():
    assert findings.f4(sweep(pixel=(30, 31, 32), m36=(33, 34, 35))).verdict == UNDECIDED


def ks(**values):
    """Runs over k; values: {"k0": mIoU of three seeds, "k04": ...} for k = 0 and 0.4, the default's under "own"."""
    own = seeds("mgca", values["own"], unit="meta-point", points=36)
    swept = seeds("sweep", (99, 99, 99), unit="meta-point", points=9)  # must not be taken for a run at the default
    ends = [seeds(name, values[name], unit="meta-point", points=36, k=k) for name, k in (("k0", 0.0), ("k04", 0.4)) if name in values]
    return frame(own, swept, *ends)


def test_f5_compares_the_default_with_both_ends():
    finding = findings.f5(ks(own=(40, 41, 42), k0=(37, 38, 39.5), k04=(35, 36, 37.5)), "meta-point")
    assert finding.verdict == HOLDS
    assert [c.second for c in finding.comparisons] == ["k = 0", "k = 0.4"]
    assert finding.comparisons[0].means == pytest.approx((41, 114.5 / 3))
    assert findings.f5(ks(own=(40, 41, 42), k0=(43, 44, 45.5), k04=(35, 36, 37.5)), "meta-point").verdict == NOT
    assert findings.f5(ks(own=(40, 41, 42), k0=(37, 38, 39.5)), "meta-point").verdict == UNDECIDED


def betas(*changes, **point):
    """Runs over beta; changes: for each beta, by how much its three seeds differ from the default's."""
    own = (40, 41, 42)
    parts = [seeds("mgca", own, unit="meta-point", points=36)]
    for i, change in enumerate(changes):
        values = [a + b for a, b in zip(own, change, strict=True)]
        parts.append(seeds(f"beta-{i}", values, unit="meta-point", points=36, beta=0.1 + i, **point))
    return frame(*parts)


def test_f6_holds_when_no_beta_is_further_than_a_point_away():
    small, large = (0.1, -0.2, 0.15), (4.0, 4.1, 3.8)
    assert findings.f6(betas(small, small), "meta-point").verdict == HOLDS
    assert findings.f6(betas(small, large), "meta-point").verdict == NOT
    assert findings.f6(betas(small, (0.5, 2.5, -1.0)), "meta-point").verdict == UNDECIDED
    assert findings.f6(betas(), "meta-point").verdict == UNDECIDED
    assert findings.f6(betas(large, granularity="object+region"), "meta-point").verdict == UNDECIDED  # of another granularity


def test_all_six_are_judged_in_order():
    assert [f.code for f in findings.judge(frame(granularities()), "meta-point")] == ["F1", "F2", "F3", "F4", "F5", "F6"]
