"""From results as JSON to tables and the report, on a study made by hand."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from ovseg import params
from ovseg.study import findings, report, results, tables
from ovseg.world import scenes

ROOT = Path(__file__).resolve().parents[1]
P = params.load(path=ROOT / "params.yaml")
PAPER = YAML(typ="safe").load((ROOT / "paper/tables.yaml").read_text())
WITH, WITHOUT = tables.GROUPS
ALL = "object+region+pixel"
CLIP = params.flatten({"clip": P.clip})


def evaluated(*units, **miou):
    """What evaluation.evaluate would say: {benchmark: {unit: ...}}, miou: {benchmark: of the first unit, 1 more for each further}."""
    classes = {"things": ["background", "cat"], "scenes": ["cat", "sky"], "more": ["cat", "dog"]}
    return {
        name: {
            unit: {"miou": value + extra, "pictures": 4, "classes": [{"class": c, "iou": value + extra} for c in classes[name]]}
            for extra, unit in enumerate(units)
        }
        for name, value in miou.items()
    }


def save(folder, run, miou, seed=0, units=("pixel", "meta-point"), points=36, **mgca):
    """Write a result and return its path. miou: a number, of the benchmark `things` by pixels; `scenes` has twice that."""
    training = None
    clip = P.clip.model_copy(update={"dense": Path(run).name}) if run.startswith("ablations/dense/") else P.clip
    if not run.startswith("ablations/dense/"):
        settings = {"mgca": P.mgca.model_copy(update=mgca), "train": P.train.model_copy(update={"seed": seed})}
        training = {"seed": seed, "seconds": 12.5, "parameters": params.flatten(settings)}
    segment = {"segment": P.segment.model_copy(update={"meta_points": points})}
    result = results.make(run, training, evaluated(*units, things=miou, scenes=2 * miou), params.flatten({"clip": clip} | segment), 3.5)
    path = folder / f"{run}.json"
    results.write(result, path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = [save(folder, "ablations/dense/clip", 5), save(folder, "ablations/dense/maskclip", 10), save(folder, "mgca", 30)]
    paths += [save(folder, f"ablations/headline/seed-{seed}", 30 + seed, seed) for seed in (1, 2)]
    for start, levels in ((20, "object"), (19, "region"), (15, "pixel"), (25, "object+region")):
        paths += [
            save(folder, f"ablations/granularity/{levels}-seed-{s}", start + s + s * s / 10, s, granularity=levels) for s in (0, 1, 2)
        ]
    paths += [save(folder, f"ablations/k/{k}-seed-0", 28, k=k) for k in (0.0, 0.4)]
    for count, start in ((64, 30.5), (9, 25)):
        paths += [save(folder, f"ablations/meta-points/{count}/{s}", start + s, s, ("meta-point",), count) for s in (0, 1, 2)]
    return paths


def test_a_result_holds_one_schema(study):
    result = json.loads(study[2].read_text())
    assert list(result) == ["run", "seed", "seconds", "miou", "parameters", "classes", "pictures"]
    assert result["run"] == "mgca" and result["seed"] == 0 and result["seconds"] == {"train": 12.5, "evaluate": 3.5}
    assert result["miou"] == {"things": {"pixel": 30, "meta-point": 31}, "scenes": {"pixel": 60, "meta-point": 61}}
    assert {"name": "mgca.alpha", "value": 0.4} in result["parameters"] and {"name": "segment.meta_points", "value": 36} in result[
        "parameters"
    ]
    assert {"benchmark": "scenes", "unit": "meta-point", "class": "sky", "iou": 61} in result["classes"]
    assert result["pictures"] == [{"benchmark": "things", "pictures": 4}, {"benchmark": "scenes", "pictures": 4}]
    untrained = json.loads(study[0].read_text())
    assert untrained["seed"] is None and not any(row["name"].startswith("mgca") for row in untrained["parameters"])


def test_writing_leaves_no_half_file(tmp_path):
    save(tmp_path, "mgca", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mgca.json"]


def test_reading_gives_a_row_for_each_run_benchmark_and_unit(study):
    runs = tables.read(study)
    assert len(runs) == 19 * 4 + 6 * 2
    (row,) = tables.at(runs, run="ablations/granularity/region-seed-2", benchmark="scenes", unit="meta-point").to_dict("records")
    assert row["miou"] == pytest.approx(2 * 21.4 + 1) and row["group"] == WITHOUT and row["points"] == 36 and row["seed"] == 2
    assert row["granularity"] == "region" and (row["alpha"], row["beta"], row["k"]) == (0.4, 0.05, 0.06)
    baseline = tables.at(runs, run="ablations/dense/maskclip")
    assert set(baseline["granularity"]) == {tables.NONE} and baseline["seed"].isna().all() and baseline["alpha"].isna().all()
    assert tables.at(runs, unit="pixel")["points"].isna().all()


def test_a_missing_result_is_named(study, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json does not exist"):
        tables.read([*study, tmp_path / "nothing.json"])


def test_things_and_stuff_are_means_over_those_classes(tmp_path):
    iou = {name: 10.0 if name in scenes.THINGS else 50.0 for name in scenes.CLASSES}
    iou["car"] = None  # nowhere: left out of the mean
    found = {"miou": 20.0, "pictures": 1, "classes": [{"class": name, "iou": value} for name, value in iou.items()]}
    results.write(results.make("clip", None, {"world": {"pixel": found}}, CLIP, 0.0), tmp_path / "clip.json")
    (row,) = tables.read([tmp_path / "clip.json"]).to_dict("records")
    assert row["things"] == 10 and row["stuff"] == 50 and row["group"] == WITHOUT


def test_averages_are_over_the_benchmarks_of_a_group(tmp_path):
    result = results.make("clip", None, evaluated("pixel", things=10, scenes=20, more=40), CLIP, 0.0)
    results.write(result, tmp_path / "clip.json")
    means = tables.averages(tables.read([tmp_path / "clip.json"]))
    assert means.set_index("group")["miou"].to_dict() == {WITH: 10, WITHOUT: 30}


def test_a_run_at_the_headlines_own_value_is_counted_once(study, tmp_path):
    again = save(tmp_path, "ablations/alpha/0.4-seed-0", 77, alpha=0.4)
    assert tables.averages(tables.read([*study, again])).equals(tables.averages(tables.read(study)))


def test_a_curve_holds_what_differs_from_the_headline_in_its_key_only(study):
    means = tables.averages(tables.read(study))
    found = tables.curve(means, "k", unit="meta-point", group=WITH)
    assert sorted(found["k"]) == [0.0, 0.06, 0.06, 0.06, 0.4]  # the headline's three seeds, not the sweep over meta-points
    assert set(tables.curve(means, "granularity", unit="pixel")["granularity"]) == {"object", "region", "pixel", "object+region", ALL}


def test_the_table_of_methods_holds_the_headline_alone(study):
    table = tables.results(tables.read(study))
    assert list(table.index) == [(m, u) for m in ("CLIP", "MaskCLIP", "MGCA") for u in ("pixel", "meta-point")]
    assert table.loc[("MGCA", "meta-point")].to_dict() == {"things": 31, "scenes": 61}


def test_beside_the_paper(study):
    rows = tables.curve(tables.averages(tables.read(study)), "granularity", unit="pixel")
    table = tables.beside_paper(rows, "granularity", PAPER["granularity"])
    assert table.loc[ALL, f"{WITH}, mean"] == 31 and table.loc[ALL, f"{WITH}, std"] == 1 and table.loc[ALL, f"{WITH}, count"] == 3
    assert table.loc[ALL, f"{WITH}, paper"] == 37.1 and table.loc["pixel", f"{WITHOUT}, paper"] == 33.1
    assert pd.isna(table.loc[tables.NONE, f"{WITH}, mean"]) and table.loc[tables.NONE, f"{WITH}, paper"] == 21.0


def test_the_report_says_what_the_results_say(study):
    means = tables.averages(tables.read(study))
    found = findings.judge(means, "meta-point")
    runs = tables.read(study)
    text = report.write(found, runs, "meta-point", PAPER, {"Curves": "figures/curves.png"})
    for finding in found:
        assert f"| {finding.code} | {finding.claim} | **{finding.verdict}** |" in text
    assert f"{found[0].code} | {found[0].claim} | **holds**" in text and "**does not hold**" in text  # F1, and F2 by the numbers above
    assert "| with background | object | 21.2 ± 1.2 | none | 10.0 | +11.17 | 3 | 0.002 | holds |" in text
    assert f"| {ALL} | 31.0 ± 1.0 (3) | 37.1 | 62.0 ± 2.0 (3) | 33.7 |" in text
    points = re.findall(r"^\| (\w+) \| (.*) \|$", text[text.index("Table 4") :], re.M)[1:]
    assert [name for name, _ in points] == ["pixel", "121", "81", "64", "49", "36", "25", "16", "9"]
    assert (
        dict(points)["pixel"] == "31.0 ± 1.0 (3) | 37.1 | 62.0 ± 2.0 (3) | 33.7"
        and dict(points)["121"] == "not run | 38.2 | not run | 35.0"
    )
    assert dict(points)["9"] == "26.0 ± 1.0 (3) |  | 52.0 ± 2.0 (3) | "
    assert "![Curves](figures/curves.png)" in text and "nan" not in text
    assert text == report.write(found, runs, "meta-point", PAPER, {"Curves": "figures/curves.png"})


def test_a_study_without_ablations_still_has_a_report(study):
    runs = tables.read(study[:3])
    found = findings.judge(tables.averages(runs), "meta-point")
    assert {f.verdict for f in found} == {findings.UNDECIDED}
    assert "nan" not in report.write(found, runs, "meta-point", PAPER, {})


# ---- the paper's Tables 1 and 2

LEVELS = {"granularity": ALL, "alpha": 0.4, "beta": 0.05, "k": 0.06}
UNTRAINED = {"granularity": tables.NONE} | dict.fromkeys(("alpha", "beta", "k"), float("nan"))
BACKGROUND = ("things", "voc", "context", "coco_object")  # benchmarks with one


def frame(**by_run):
    """A frame as of tables.read. by_run: {run: (seed or None, {benchmark: mIoU by pixels})}; by meta-points it is 1 more."""
    rows = []
    for run, (seed, miou) in by_run.items():
        for benchmark, value in miou.items():
            group = WITH if benchmark in BACKGROUND else WITHOUT
            for unit, points, extra in (("pixel", None, 0), ("meta-point", 36, 1)):
                row = {"run": run.replace("_seed_", "/seed-"), "seed": seed, "benchmark": benchmark, "group": group, "unit": unit}
                rows.append(row | {"points": points, "dense": "maskclip", "miou": value + extra} | (UNTRAINED if seed is None else LEVELS))
    return pd.DataFrame(rows).astype({"seed": float, "points": float})


def lines_of(text, title):
    """The rows of the table under the first heading that holds title, {first cell: [further cells]}."""
    table = text[text.index(title) :].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: rest for first, *rest in cells}


def written(runs, unit="meta-point"):
    return report.write([], runs, unit, PAPER, {})


def test_the_papers_tables_hold_ours_of_the_same_benchmarks():
    runs = frame(
        maskclip=(None, {"voc": 30, "context": 20, "coco_object": 10}),
        mgca=(0, {"voc": 50, "context": 30, "coco_object": 25}),
        headline_seed_1=(1, {"voc": 52, "context": 31, "coco_object": 22}),
    )
    found = lines_of(written(runs), "Table 1")
    assert found["method"] == ["pairs", "voc", "context", "coco_object", "average"]
    assert found["MaskCLIP"] == ["none", "38.8", "23.6", "20.6", "27.7"]  # the paper's
    assert found["**MaskCLIP, ours, by pixels**"] == ["none", "30.0", "20.0", "10.0", "20.0"]
    # by meta-points: 51 and 53; 31 and 32; 26 and 23; averages 36 both
    ours = ["this study's", "52.0 ± 1.4 (2)", "31.5 ± 0.7 (2)", "24.5 ± 2.1 (2)", "36.0 (2)"]
    assert found["**MGCA, ours, by meta-points**"] == ours
    assert lines_of(written(runs, "pixel"), "Table 1")["**MGCA, ours, by pixels**"][1] == "51.0 ± 1.4 (2)"


def test_a_benchmark_that_was_not_run_is_no_number_and_leaves_no_average():
    found = lines_of(written(frame(maskclip=(None, {"voc20": 70}), mgca=(0, {"voc20": 80}))), "Table 2")
    assert found["CoCu"] == ["CC3M&12M+YFCC14M", "–", "–", "14.9", "21.9", "12.0", "–"]  # the paper gives no number
    assert found["**MaskCLIP, ours, by pixels**"] == ["none", "70.0", *["not run"] * 5]
    assert found["**MGCA, ours, by meta-points**"] == ["this study's", "81.0", *["not run"] * 5]


def test_benchmarks_of_other_names_are_not_the_papers(study):
    text = written(tables.read(study))
    for number, count in ((1, 3), (2, 5)):
        found = lines_of(text, f"Table {number}")
        assert all(found[row][1:] == ["not run"] * (count + 1) for row in found if "ours" in row)


def test_a_run_at_the_headlines_point_counts_once_in_the_papers_tables():
    runs = frame(maskclip=(None, {"voc": 30}), mgca=(0, {"voc": 50}), alpha_seed_0=(0, {"voc": 90}))
    fewer = frame(points=(0, {"voc": 10})).assign(points=9.0)  # of the sweep over meta-points
    found = tables.suite(pd.concat([runs, fewer]), ["voc"], "meta-point")
    assert found.loc["MGCA", ("voc", "mean")] == 51 and found.loc["MGCA", ("average", "count")] == 1


@pytest.mark.parametrize(
    "ours, said",
    [
        (["voc", "context", "coco_object"], "`voc`, `context` and `coco_object`: the same benchmarks."),
        (["voc"], "`context` and `coco_object` not run here, so that the two are not comparable."),
        (["voc", "context", "coco_object", "things"], ": `things` not the paper's, so that the two are not comparable."),
        (["context", "things"], "`voc` and `coco_object` not run here, `things` not the paper's, so that"),
        (["things"], "ours are averages over `things`, the paper's over `voc`, `context` and `coco_object`: no benchmark in common"),
    ],
)
def test_the_report_says_what_averages_are_over(ours, said):
    miou = dict.fromkeys([*ours, "scenes"], 10)
    sentences = [line for line in written(frame(maskclip=(None, miou), mgca=(0, miou))).splitlines() if line.startswith("With background,")]
    assert len(sentences) == 2 and sentences[0] == sentences[1] and said in sentences[0]  # above Tables 3 and 4


def test_the_papers_numbers_are_consistent():
    for name in ("with_background", "without_background"):
        for row in PAPER[name]["rows"]:
            assert len(row["miou"]) == len(PAPER[name]["benchmarks"])
            if row["average"] is not None:
                assert sum(row["miou"]) / len(row["miou"]) == pytest.approx(row["average"], abs=0.06)
    by_points, by_levels = (
        {row[key]: row for row in PAPER[table]} for table, key in (("meta_points", "points"), ("granularity", "granularity"))
    )
    for group, table in ((WITH, "with_background"), (WITHOUT, "without_background")):
        mgca = next(row for row in PAPER[table]["rows"] if row["method"] == "MGCA")
        assert by_points[36][group] == mgca["average"]
        assert by_points[3136][group] == by_levels[ALL][group]


def test_the_baseline_reads_dense_features_as_the_headline_does():
    runs = frame(maskclip=(None, {"voc": 30}), sclip=(None, {"voc": 35}), mgca=(0, {"voc": 50}))
    runs.loc[runs["run"] == "sclip", "dense"] = "sclip"
    assert tables.suite(runs, ["voc"], "pixel").loc["MaskCLIP", ("voc", "mean")] == 30
    runs.loc[runs["run"] == "mgca", "dense"] = "sclip"
    assert tables.suite(runs, ["voc"], "pixel").loc["SCLIP", ("voc", "mean")] == 35


def test_runs_on_other_benchmarks_are_not_averaged_with_these(study, tmp_path):
    result = json.loads(study[-1].read_text())
    del result["miou"]["scenes"]
    result["classes"] = [row for row in result["classes"] if row["benchmark"] != "scenes"]
    results.write(result, tmp_path / "fewer.json")
    with pytest.raises(ValueError, match="fewer.json is on things, other results on scenes, things: evaluate it again"):
        tables.read([*study, tmp_path / "fewer.json"])
