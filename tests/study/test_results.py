"""Results read from files into one table, looked up by what runs change, drawn, and reported."""

import json

import pytest
from made import ALL, RUNS, WITH, WITHOUT, baseline, results, run

from ovseg.study import report
from ovseg.study.findings import judge
from ovseg.study.results import load_results
from ovseg.study.runs import make_result


def write(folder, run, iou):
    """A result file of a run of params.yaml. iou: as in make_result."""
    path = folder / f"{run}.json"
    path.write_text(json.dumps(make_result(RUNS[run], iou, {"train": 30.0}, 7)))
    return path


def test_a_row_for_each_seed_benchmark_and_unit_of_files_on_the_same_benchmarks(tmp_path):
    world, street = {"car": 30.0, "sky": 60.0}, {"background": 10.0, "cat": 20.0}
    units = {(seed, unit): street for seed in (0, 1) for unit in ("meta-point", "pixel")}
    default = write(tmp_path, "default", {"street": units, "world": dict.fromkeys(units, world)})
    one = {"street": {(0, "pixel"): street}, "world": {(0, "pixel"): world}}
    study = load_results([default, write(tmp_path, "mgca.k=0,train.seeds=6", one)])
    assert len(study.rows) == 10 and study.parameters["mgca.k"] == 0.06
    assert study.costs == {"default": (7, 15.0), "mgca.k=0,train.seeds=6": (7, 30.0)}
    assert study.changes == {"default": {}, "mgca.k=0,train.seeds=6": {"mgca.k": 0}}  # seeds are no difference
    row = study.rows[(study.rows["benchmark"] == "street") & (study.rows["unit"] == "pixel")].iloc[0]
    assert (row["miou"], row["group"], row["own"], row["seed"]) == (15.0, WITH, False, 0)
    row = study.rows[study.rows["benchmark"] == "world"].iloc[0]
    assert (row["group"], row["miou"]) == (WITHOUT, 45)
    assert set(study.rows.loc[study.rows["own"], "unit"]) == {"meta-point"}
    with pytest.raises(FileNotFoundError, match="absent.json does not exist"):
        load_results([default, tmp_path / "absent.json"])
    with pytest.raises(ValueError, match="clip.json is on road, other results on street, world"):
        load_results([default, write(tmp_path, "clip", {"road": {(None, "pixel"): street}})])


STUDY = results(
    run({}, (40, 42), (38, 40)), run({"mgca.k": 0}, (45, 47), (44, 45)), run({"mgca.k": 0.4}, (30,), (29,)),
    run({"mgca.tau": 0.1}, (41, 41.5), (40, 40)), run({"train.mask_equal_texts": False}, (39, 39)),
    run({"mgca.granularity": "object+region"}, (35, 36)), run({"mgca.beta": 0.2}, (33, 34)),
    run({"mgca.beta": 0.2, "mgca.granularity": "object+region"}, (31, 32)), run({"segment.meta_points": 9}, (20, 21)), baseline(10),
)  # fmt: skip


def test_runs_are_found_by_what_they_change():
    assert STUDY.find({}) == STUDY.find({"mgca.k": 0.06}) == "default" and STUDY.baseline == "maskclip"
    assert STUDY.find({"mgca.k": 0}) == STUDY.find({"mgca.k": 0, "mgca.tau": 0.07}) == "mgca.k=0"
    assert STUDY.find({"mgca.k": 0.2}) is None and STUDY.find({"mgca.k": 0, "mgca.tau": 0.1}) is None
    # a series contains the default run's value
    assert list(STUDY.series("mgca.k").items()) == [(0, "mgca.k=0"), (0.06, "default"), (0.4, "mgca.k=0.4")]
    both = STUDY.series("mgca.beta", {"mgca.granularity": "object+region"})
    assert both == {0.05: "mgca.granularity=object+region", 0.2: "mgca.beta=0.2,mgca.granularity=object+region"}
    assert STUDY.series("segment.meta_points") == {9: "segment.meta_points=9", 36: "default"}
    keys = ["mgca.k", "mgca.tau", "train.mask_equal_texts", "mgca.granularity", "mgca.beta", "segment.meta_points"]
    assert STUDY.ablated == keys  # those that some run changes alone


def test_a_series_may_hold_null():
    mixreorg = {"train.method": "mixreorg"}
    study = results(run(mixreorg, (1,)), *(run(mixreorg | {"mixreorg.block": block}, (block,)) for block in (2, 0)))
    assert list(study.series("mixreorg.block", mixreorg)) == [0, 2, None]


def test_an_ablation_has_each_value_with_its_seeds_and_a_second_curve_where_runs_share_other_changes():
    def means(key):
        return STUDY.ablation(key).groupby(["with", key])["miou"].mean().to_dict()

    assert means("mgca.k") == {("default", 0): 46, ("default", 0.06): 41, ("default", 0.4): 30}
    both = {("default", 0.05): 41, ("default", 0.2): 33.5}
    assert means("mgca.beta") == both | {("granularity = object+region", 0.05): 35.5, ("granularity = object+region", 0.2): 31.5}
    assert means("train.mask_equal_texts") == {("default", False): 39, ("default", True): 41}
    values = STUDY.ablation("mgca.granularity").groupby("with", sort=False)["mgca.granularity"].unique().map(list).to_dict()
    assert values == {"default": ["object+region", ALL], "beta = 0.2": ["object+region", ALL]}


def test_methods_are_compared_by_the_runs_that_change_no_more_than_each_may_choose():
    study = results(
        run({}, (40, 42)), run({"train.method": "supervised", "train.lr": 0.004}, (98, 98)), run({"mgca.k": 0}, (25,)),
        run({"train.method": "tcl", "mgca.k": 0}, (99,)), run({"train.method": "mgca+mixreorg"}, (50, 50)),
        run({"train.method": "supervised"}, (70, 50)),
        run({"train.method": "tcl", "train.lr": 0.004}, (30, 34), (20, 22)), run({"clip.dense": "maskclip"}, [10], [10]),
        run({"clip.dense": "reco"}, [12], [11]), run({"clip.dense": "sclip"}, [13], [13]), run({"train.texts": "curated"}, (44, 46)),
        run({"train.method": "simseg", "simseg.select": "text"}, (41, 43)), run({"train.method": "tcl", "simseg.select": "text"}, (1,)),
    )  # fmt: skip
    assert list(study.methods.values()) == ["mgca", "mgca+mixreorg", "mgca, curated texts", "tcl", "simseg, by text", "supervised"]
    paper = {WITH: {"rows": [{"method": "TCL", "average": 35.1}, {"method": "TCL", "average": 35.3}]}, WITHOUT: {"rows": []}}
    tcl = next(run for run, method in study.methods.items() if method == "tcl")
    table = report.methods_table(study, paper, {tcl: 3.14}).set_index("method")
    assert list(table.index)[:4] == ["MaskCLIP", "ReCo", "MGCA", "MGCA + MixReorg"]
    assert list(table.index)[4:] == ["MGCA, curated texts", "TCL", "SimSeg, by text", "supervised"]
    wanted = {"its own": "lr 0.004", WITH: "32.0 ± 2.8 (2)", f"{WITH}, by pixels": "21.0 ± 1.4 (2)", f"{WITH}, paper": "35.3"}
    assert table.loc["TCL", list(wanted)].to_dict() == wanted and table["images a second"].tolist() == ["", "", "", "", "", "3.1", "", ""]
    assert table.loc["MGCA", WITH] == "41.0 ± 1.4 (2)" and table.loc["MaskCLIP", f"{WITH}, by pixels"] == "10.0"
    assert table.loc["ReCo", WITH] == "12.0"
    pairs = {row["second"]: (row["means"], row["n"]) for row in report.against(study)}
    means = {"TCL": (41, 32), "MGCA + MixReorg": (41, 50), "MGCA, curated texts": (41, 45), "SimSeg, by text": (41, 42)}
    assert pairs == {name: (both, 2) for name, both in means.items()}
    gap = study.gap_closed().set_index(["run", "seed"])["miou"]  # from 10 to 70 or 50
    assert gap["default", 0] == pytest.approx(100 * 30 / 60) and gap["default", 1] == pytest.approx(100 * 32 / 40)
    assert gap["mgca.k=0", 0] == pytest.approx(25) and gap[study.supervised, 0] == gap[study.supervised, 1] == 100
    assert table.loc["MGCA", f"{WITH}, gap closed"] == "65.0 ± 21.2 (2)"


PAPER = {
    WITH: {"benchmarks": ["voc"], "rows": []},
    WITHOUT: {"benchmarks": [f"b-{WITHOUT}", "city"], "rows": [{"method": "TCL", "data": "CC3M", "miou": [51.4, None], "average": 60.0}]},
    "granularity": [{"granularity": "none", WITH: 21.0, WITHOUT: 18.8}, {"granularity": ALL, WITH: 37.1, WITHOUT: 33.7}],
    "meta_points": [{"points": 3136, WITH: 30.0, WITHOUT: 31.0}, {"points": 36, WITH: 37.5, WITHOUT: 34.0}],
}


def report_of(study):
    """{first words of a title: table} of the report, and its Markdown."""
    sections = report.sections(study, judge(study), PAPER, {})
    return {title.partition(",")[0]: table for title, _, table in sections}, report.markdown([*sections, ("A chart", "![](a.png)", None)])


def test_ours_stand_beside_the_papers_numbers():
    found, text = report_of(STUDY)
    table = found["Granularity"].set_index("granularity")
    assert list(table.loc["none"]) == ["10.0", "21.0", "not run", "18.8"]
    assert list(table.loc[ALL]) == ["39.0 ± 1.4 (2)", "37.1", "not run", "33.7"]
    table = found["Meta-points"].set_index("points")
    assert list(table.loc["pixel"])[:2] == ["39.0 ± 1.4 (2)", "30.0"]
    assert list(table.loc[36])[:2] == ["41.0 ± 1.4 (2)", "37.5"] and list(table.loc[9])[:2] == ["20.5 ± 0.7 (2)", ""]
    assert "so that the two are not comparable" in text and "## Benchmarks" not in text  # none of the paper's was run
    assert "the same benchmarks" in report.averaged_over(STUDY, WITH, [f"b-{WITH}"])
    # a table of the paper appears when one of its benchmarks was run
    table = report_of(results(run({}, (40, 42), (38, 40), WITHOUT), baseline(10, WITHOUT)))[0][f"Benchmarks {WITHOUT}"]
    assert table.to_numpy().tolist() == [
        ["TCL", "CC3M", "51.4", "–", "60.0"],
        ["**MGCA, ours, by meta-points**", "this study's", "41.0 ± 1.4 (2)", "not run", "not run"],
        ["**MaskCLIP, ours, by pixels**", "none", "10.0", "not run", "not run"],
    ]


def test_each_run_is_a_row_of_the_report_which_is_complete_without_any_ablation():
    table = report.runs_table(STUDY).set_index("run")
    assert table.loc["default"].tolist() == ["41.0 ± 1.4 (2)", "39.0 ± 1.4 (2)"] and list(table) == [WITH, f"{WITH}, by pixels"]
    assert table.loc["mgca.tau = 0.1", WITH] == "41.2 ± 0.4 (2)" and table.loc["mgca.k = 0.4", WITH] == "30.0"
    assert table.loc["MaskCLIP, untrained"].tolist() == ["", "10.0"]
    assert "mgca.beta = 0.2, mgca.granularity = object+region" in table.index and len(table) == len(STUDY.changes) + 1
    assert STUDY.supervised is None and table.loc["train.method = supervised", WITH] == "not run"
    text = report_of(results(run({}, (40, 42), (38, 40)), baseline(10)))[1]
    assert text.startswith("# Do the paper's findings hold here?\n") and "| **undecided** |" in text and "| default" in text
    assert "was not run.\n" in text and text.endswith("## A chart\n\n![](a.png)\n")
    drawn = report.comparisons_table(judge(STUDY)[4].comparisons)
    assert drawn.iloc[0].tolist() == [WITH, "k = 0.06", "41.0 ± 1.4", "k = 0", "46.0 ± 1.4", "-5.00", "0.00", "2", "1.000", "does not hold"]
