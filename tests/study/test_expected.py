"""docs/expected.md, the README's table of methods and its verdicts are those of the results in git, whatever was run or changed since."""

import json
import re
import statistics
import subprocess

import pytest
import yaml
from tiny import ROOT


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
    assert len(readme) == 12 and {name: row[:4] for name, row in readme.items()} == {name: row[:4] for name, row in EXPECTED.items()}


def kind(verdict):
    return "undecided" if "undecided" in verdict else "no" if "not" in verdict else "yes"


def test_the_readme_says_the_verdicts_that_are_the_same_on_both_processors_and_expected_how_far_they_differ():
    row = r"^\| (F\d) +\|.*\| \*\*(.+?)\*\* +\|(?: (yes|no: .+?) +\|)?$"
    report = re.findall(row, committed("results/REPORT.md"), re.MULTILINE)
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.findall(r"((?:F\d(?:, | and )?)+) (holds?|do(?:es)? not hold|(?:is|are) undecided):", text)
    kinds = {finding: kind(verdict) for findings, verdict in said for finding in re.findall(r"F\d", findings)}
    assert kinds == {finding: "undecided" if there.startswith("no") else kind(verdict) for finding, verdict, there in report}
    assert len(report) == 6
    if json.loads(committed("results/other_processor.json")):
        spread = re.search(r"\d+ means over seeds differ by \S+ points in the median and by \S+ at most", committed("results/REPORT.md"))
        assert spread[0] in " ".join((ROOT / "docs/expected.md").read_text().split())


def miou_of(name, benchmark, unit=None):
    """{seed: mIoU} of a row of docs/expected.md. unit: None: the run's own."""
    run = re.fullmatch(r"`dvc repro '\w+@(.+)'`", EXPECTED[name][-1])[1]
    result = json.loads(committed(f"results/runs/{run}.json"))
    return {seed["seed"]: seed["miou"][benchmark][unit or dict(result["parameters"])["segment.unit"]] for seed in result["seeds"]}


@pytest.mark.parametrize("name, row", [(name, row) for name, row in rows("README.md").items() if row[4]])
def test_the_gap_that_the_readme_calls_closed_is_the_mean_over_the_seeds_that_both_have(name, row):
    closed = []
    for benchmark in ("things", "scenes"):
        (low,), top, ours = (miou_of(run, benchmark).values() for run in ("MaskCLIP, untrained", "supervised", name))
        closed.append(statistics.mean(100 * (one - low) / (most - low) for one, most in zip(ours, top, strict=False)))
    assert row[4] == ", ".join(f"{share:.0f}%" for share in closed)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_is_what_its_command_gave(name):
    *expected, _, command = EXPECTED[name]
    assert re.match(r"`dvc repro '(\w+)@", command)[1] in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    columns = [[*miou_of(name, benchmark, unit).values()] for benchmark in ("things", "scenes") for unit in ("pixel", None)]
    assert expected == [f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "") for v in columns]
