"""docs/expected.md, the README's table of methods and its verdicts are those of the results in git, whatever was run or changed since."""

import json
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def committed(file):
    """A file as the last commit has it."""
    done = subprocess.run(["git", "show", f"HEAD:{file}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {file} in git: {done.stderr.strip()}")
    return done.stdout


def rows(file):
    """The cells of a file's table of methods, without marks of emphasis."""
    table = (ROOT / file).read_text().partition("\n| method |")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table[2:]]
    return {row[0]: row[1:] for row in cells}


EXPECTED = rows("docs/expected.md")


def test_the_readme_has_the_same_rows():
    readme = rows("README.md")
    assert len(readme) == 8 and {name: row[:4] for name, row in readme.items()} == {name: row[:4] for name, row in EXPECTED.items()}


def kind(verdict):
    return "undecided" if "undecided" in verdict else "no" if "not" in verdict else "yes"


def test_the_readme_says_the_verdicts_that_are_the_same_on_both_processors():
    row = r"^\| (F\d) +\|.*\| \*\*(.+?)\*\* +\|(?: (yes|no: .+?) +\|)?$"
    report = re.findall(row, committed("results/REPORT.md"), re.MULTILINE)
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.findall(r"((?:F\d(?:, | and )?)+) (holds?|do(?:es)? not hold|(?:is|are) undecided):", text)
    kinds = {finding: kind(verdict) for findings, verdict in said for finding in re.findall(r"F\d", findings)}
    assert kinds == {finding: "undecided" if there.startswith("no") else kind(verdict) for finding, verdict, there in report}
    assert len(report) == 6


def test_how_far_processors_differ_is_what_the_report_says():
    if json.loads(committed("results/other_processor.json")):
        spread = re.search(r"\d+ means over seeds differ by \S+ points in the median and by \S+ at most", committed("results/REPORT.md"))
        assert spread[0] in " ".join((ROOT / "docs/expected.md").read_text().split())


def result_of(name):
    """(stage, result) of a row of docs/expected.md."""
    stage, _, run = re.fullmatch(r"`dvc repro '(.+)'`", EXPECTED[name][-1])[1].partition("@")
    return stage, json.loads(committed(f"results/runs/{run or 'default'}.json"))


def own(result, benchmark):
    """{seed: mIoU by the run's own unit}."""
    return {seed["seed"]: seed["miou"][benchmark][dict(result["parameters"])["segment.unit"]] for seed in result["seeds"]}


def test_the_gap_that_the_readme_calls_closed_is_the_mean_over_the_seeds_that_both_have():
    (_, baseline), (_, supervised) = result_of("MaskCLIP, untrained"), result_of("supervised")
    for name, row in rows("README.md").items():
        closed = []
        for benchmark in ("things", "scenes") if row[4] else ():
            (low,), top, ours = own(baseline, benchmark).values(), own(supervised, benchmark), own(result_of(name)[1], benchmark)
            closed.append(f"{statistics.mean(100 * (ours[seed] - low) / (top[seed] - low) for seed in ours.keys() & top.keys()):.0f}%")
        assert row[4] == ", ".join(closed)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_is_what_its_command_gave(name):
    *expected, _, _ = EXPECTED[name]
    stage, result = result_of(name)
    assert stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    miou = []
    for benchmark in ("things", "scenes"):
        for unit in ("pixel", dict(result["parameters"])["segment.unit"]):
            values = [seed["miou"][benchmark][unit] for seed in result["seeds"]]
            miou.append(f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""))
    assert expected == miou
