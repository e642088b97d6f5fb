"""Results read from files into one table, looked up by what runs change, and drawn."""

import json

import pandas as pd
import pytest
from made import ALL, PARAMETERS, WITH, WITHOUT, baseline, inferred, results, run

from ovseg.study import charts, comparison, report
from ovseg.study.results import load_results
from ovseg.world import scenes


def write(folder, name, kind, changes, seeds, unit="meta-point"):
    """A result file. seeds: {seed: {benchmark: {unit: {class: IoU}}}}."""
    miou = {b: dict.fromkeys(by_unit, 0.0) for b, by_unit in next(iter(seeds.values())).items()}
    made = []
    for seed, iou in seeds.items():
        found = {b: {u: sum(classes.values()) / len(classes) for u, classes in by_unit.items()} for b, by_unit in iou.items()}
        made.append({"seed": seed, "miou": found, "iou": iou})
    result = {"run": name, "kind": kind, "changes": list(changes.items()), "miou": miou, "seeds": made}
    result["parameters"] = list((PARAMETERS | changes).items())
    path = folder / f"{name.replace('/', '-')}.json"
    path.write_text(json.dumps(result | {"seconds": {"train": 30.0}, "weights": 7}))
    return path


def test_a_row_for_each_seed_benchmark_and_unit(tmp_path):
    world = dict.fromkeys(scenes.THINGS, 30.0) | dict.fromkeys(scenes.STUFF, 60.0)
    street = {"background": 10.0, "cat": 20.0}
    seeds = {seed: {"street": {"pixel": street, "meta-point": street}, "world": {"pixel": world}} for seed in (0, 1)}
    path = write(tmp_path, "mgca", "default", {}, seeds)
    more = write(tmp_path, "trained/mgca.k=0", "trained", {"mgca.k": 0, "train.seeds": 1}, {0: seeds[0]})
    found = load_results([path, more])
    assert len(found.rows) == 9 and found.parameters == PARAMETERS
    assert found.costs == {"mgca": (7, 15.0), "trained/mgca.k=0": (7, 30.0)}
    assert found.changes == {"mgca": {}, "trained/mgca.k=0": {"mgca.k": 0}}  # a number of seeds tells no runs apart
    row = found.rows[(found.rows["benchmark"] == "street") & (found.rows["unit"] == "pixel")].iloc[0]
    assert (row["miou"], row["group"], row["own"], row["seed"]) == (15.0, WITH, False, 0) and row["things"] != row["things"]
    row = found.rows[found.rows["benchmark"] == "world"].iloc[0]
    assert (row["group"], row["things"], row["stuff"]) == (WITHOUT, 30, 60)
    assert set(found.rows.loc[found.rows["own"], "unit"]) == {"meta-point"}


def test_a_missing_result_and_one_on_other_benchmarks_are_errors_that_name_it(tmp_path):
    one = write(tmp_path, "mgca", "default", {}, {0: {"street": {"pixel": {"cat": 1.0}}}})
    other = write(tmp_path, "untrained/clip", "untrained", {"clip.dense": "clip"}, {None: {"road": {"pixel": {"cat": 1.0}}}})
    with pytest.raises(FileNotFoundError, match="absent.json does not exist"):
        load_results([one, tmp_path / "absent.json"])
    with pytest.raises(ValueError, match="untrained-clip.json is on road, other results on street"):
        load_results([one, other])


STUDY = results(
    run({}, (40, 42), (38, 40)),
    run({"mgca.k": 0}, (45, 47), (44, 45)),
    run({"mgca.k": 0.4}, (30,), (29,)),
    run({"mgca.tau": 0.1}, (41, 41.5), (40, 40)),
    run({"train.mask_equal_texts": False}, (39, 39)),
    run({"mgca.granularity": "object+region"}, (35, 36)),
    run({"mgca.beta": 0.2}, (33, 34)),
    run({"mgca.beta": 0.2, "mgca.granularity": "object+region"}, (31, 32)),
    inferred(9, (20, 21)),
    baseline(10),
)


def test_runs_are_found_by_what_they_change():
    assert STUDY.default == "mgca" and STUDY.baseline == "untrained/maskclip"
    assert STUDY.find({"mgca.k": 0}) == STUDY.find({"mgca.k": 0, "mgca.tau": 0.07}) == "trained/mgca.k=0"
    assert STUDY.find({"mgca.k": 0.06}) == STUDY.find({"mgca.granularity": ALL}) == "mgca"
    assert STUDY.find({"mgca.k": 0.2}) is None and STUDY.find({"mgca.k": 0, "mgca.tau": 0.1}) is None


def test_a_series_goes_through_the_defaults_own_value():
    assert STUDY.series("mgca.k") == {0: "trained/mgca.k=0", 0.06: "mgca", 0.4: "trained/mgca.k=0.4"}
    assert list(STUDY.series("mgca.k")) == [0, 0.06, 0.4]
    assert STUDY.series("mgca.beta") == {0.05: "mgca", 0.2: "trained/mgca.beta=0.2"}
    both = "trained/mgca.beta=0.2,mgca.granularity=object+region"
    rest = {"mgca.granularity": "object+region"}
    assert STUDY.series("mgca.beta", rest) == {0.05: "trained/mgca.granularity=object+region", 0.2: both}
    assert STUDY.series("segment.meta_points") == {9: "inferred/segment.meta_points=9", 36: "mgca"}


def test_each_key_that_is_changed_alone_makes_a_chart():
    keys = ["mgca.k", "mgca.tau", "train.mask_equal_texts", "mgca.granularity", "mgca.beta", "segment.meta_points"]
    assert STUDY.ablated == keys


def test_each_run_is_a_row_of_the_report_of_its_own():
    table = report.runs_table(STUDY).set_index("run")
    assert table.loc["default", WITH] == "41.0 ± 1.4 (2)" and table.loc["default", f"{WITH}, by pixels"] == "39.0 ± 1.4 (2)"
    assert table.loc["mgca.tau = 0.1", WITH] == "41.2 ± 0.4 (2)"
    assert table.loc["mgca.k = 0.4", WITH] == "30.0" and table.loc["MaskCLIP, untrained", f"{WITH}, by pixels"] == "10.0"
    assert "mgca.beta = 0.2, mgca.granularity = object+region" in table.index and len(table) == len(STUDY.changes) + 1


def test_the_gap_closed_is_the_way_from_the_baseline_to_the_supervised_run_seed_by_seed():
    untrained = run({"clip.dense": "maskclip"}, [10], group=WITH, kind="untrained")
    study = results(run({}, (40, 42)), run({"mgca.k": 0}, (25,)), run({"train.method": "supervised"}, (70, 50)), untrained)
    found = study.gap_closed().set_index(["run", "seed"])["miou"]
    assert found["mgca", 0] == pytest.approx(100 * 30 / 60) and found["mgca", 1] == pytest.approx(100 * 32 / 40)
    assert found["trained/mgca.k=0", 0] == pytest.approx(25) and found[study.supervised, 0] == found[study.supervised, 1] == 100
    table = report.runs_table(study).set_index("run")[f"{WITH}, gap closed"]
    assert table["default"] == "65.0 ± 21.2 (2)" and table["mgca.k = 0"] == "25.0" and table["train.method = supervised"][:5] == "100.0"


def test_methods_are_compared_by_the_runs_that_change_no_more_than_each_may_choose():
    untrained = run({"clip.dense": "maskclip"}, [10], pixel=[10], group=WITH, kind="untrained")
    supervised, tcl = (
        run({"train.method": "supervised"}, (70, 50)),
        run({"train.method": "tcl", "train.lr": 0.004}, (30, 34), pixel=(20, 22)),
    )
    others = [
        run({"train.method": "supervised", "train.lr": 0.004}, (98, 98)),
        run({"train.method": "tcl", "mgca.k": 0}, (99,)),
        run({"mgca.k": 0}, (99,)),
        run({"train.method": "mgca+mixreorg"}, (50, 50)),
    ]
    study = results(run({}, (40, 42)), *others, supervised, tcl, untrained)
    assert list(study.methods.values()) == ["mgca", "mgca+mixreorg", "tcl", "supervised"]
    paper = {"with_background": {"rows": [{"method": "TCL", "average": 35.1}, {"method": "TCL", "average": 35.3}]}}
    paper |= {"without_background": {"rows": []}}
    speeds = {run: 3.14 for run, method in study.methods.items() if method == "tcl"}
    table = comparison.comparison_table(study, paper, report.mean_std, "MaskCLIP", speeds).set_index("method")
    assert list(table.index) == ["MaskCLIP", "MGCA", "MGCA + MixReorg", "TCL", "supervised"]
    assert table.loc["TCL", ["its own", WITH, f"{WITH}, by pixels", f"{WITH}, paper"]].tolist() == [
        "lr 0.004", "32.0 ± 2.8 (2)", "21.0 ± 1.4 (2)", "35.3",
    ]  # fmt: skip
    assert table.loc["TCL", f"{WITH}, gap closed"] == report.mean_std(pd.Series([100 * 20 / 60, 100 * 24 / 40]))
    assert table["images a second"].tolist() == ["", "", "", "3.1", ""]
    pairs = {pair.second: (pair.means, pair.n) for pair in comparison.against(study)}
    assert pairs == {"TCL": ((41, 32), 2), "MGCA + MixReorg": ((41, 50), 2)}
    assert table.loc["MGCA", WITH] == "41.0 ± 1.4 (2)" and table.loc["MaskCLIP", f"{WITH}, by pixels"] == "10.0"


def test_without_a_supervised_run_its_row_says_so():
    table = report.runs_table(STUDY).set_index("run")
    assert STUDY.supervised is None and table.loc["train.method = supervised", WITH] == "not run"
    assert f"{WITH}, gap closed" not in table


def points(figure):
    """The points of all drawn lines, rounded, those of legends and error bars aside."""
    lines = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
    return {(round(float(x), 3), round(float(y), 3)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


def test_numbers_are_drawn_as_a_curve_of_means_over_seeds():
    assert points(charts.ablation(STUDY, "mgca.k")) == {(0, 46), (0.06, 41), (0.4, 30)}
    assert points(charts.ablation(STUDY, "mgca.tau")) == {(0.07, 41), (0.1, 41.25)}
    two = points(charts.ablation(STUDY, "mgca.beta"))  # and a curve of those that change granularity too
    assert two == {(0.05, 41), (0.2, 33.5), (0.05, 35.5), (0.2, 31.5)}


@pytest.mark.parametrize("key, widths", [("mgca.granularity", [35.5, 41]), ("train.mask_equal_texts", [39, 41])])
def test_words_are_drawn_as_bars(key, widths):
    drawn = [patch.get_width() for axis in charts.ablation(STUDY, key).axes for patch in axis.patches]
    assert set(widths) <= {round(float(width), 3) for width in drawn}


PAPER = {
    "with_background": {"benchmarks": ["voc"], "rows": [{"method": "TCL", "data": "CC3M", "miou": [51.4], "average": None}]},
    "without_background": {"benchmarks": ["city"], "rows": []},
    "granularity": [{"granularity": "none", WITH: 21.0, WITHOUT: 18.8}, {"granularity": ALL, WITH: 37.1, WITHOUT: 33.7}],
    "meta_points": [{"points": 3136, WITH: 30.0, WITHOUT: 31.0}, {"points": 36, WITH: 37.5, WITHOUT: 34.0}],
}


def test_ours_stand_beside_the_papers_and_what_was_not_run_says_so():
    table = report.granularity_table(STUDY, PAPER["granularity"]).set_index("granularity")
    assert list(table.loc["none"]) == ["10.0", "21.0", "not run", "18.8"]
    assert list(table.loc[ALL]) == ["39.0 ± 1.4 (2)", "37.1", "not run", "33.7"]
    table = report.meta_points_table(STUDY, PAPER["meta_points"]).set_index("points")
    assert list(table.loc["pixel"])[:2] == ["39.0 ± 1.4 (2)", "30.0"]
    assert list(table.loc[36])[:2] == ["41.0 ± 1.4 (2)", "37.5"] and list(table.loc[9])[:2] == ["20.5 ± 0.7 (2)", ""]
    table = report.beside_methods(STUDY, PAPER["with_background"])
    assert list(table["voc"]) == ["51.4", "not run", "not run"] and list(table["average"])[0] == "–"


def test_averages_over_other_benchmarks_are_not_called_comparable():
    assert "no benchmark in common" in report.averages_of(STUDY, WITH, ["voc"])
    assert "the same benchmarks" in report.averages_of(STUDY, WITH, [f"b-{WITH}"])
    assert "`voc` not run here" in report.averages_of(STUDY, WITH, [f"b-{WITH}", "voc"])


def test_the_report_is_whole_without_a_single_ablation():
    from ovseg.study.findings import judge

    only = results(run({}, (40, 42), (38, 40)), baseline(10))
    text = report.write_report(judge(only), only, PAPER, {"a chart": "figures/a.png"}, {})
    assert "**undecided**" in text and "![a chart](figures/a.png)" in text and "| default" in text
