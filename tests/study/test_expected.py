"""docs/expected.md and the README's table of methods hold the results in git: those committed, whatever was run or changed since."""

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


def test_the_readme_says_the_reports_verdicts():
    report = dict(re.findall(r"^\| (F\d) \|.*\| \*\*(.+?)\*\* +\|$", committed("results/REPORT.md"), re.MULTILINE))
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.findall(r"((?:F\d(?:, | and )?)+) (holds?|do(?:es)? not hold|(?:is|are) undecided):", text)
    kinds = {finding: kind(verdict) for findings, verdict in said for finding in re.findall(r"F\d", findings)}
    assert kinds == {finding: kind(verdict) for finding, verdict in report.items()}
    assert len(report) == 6


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_is_what_its_command_gave(name):
    *expected, _, command = EXPECTED[name]
    stage, _, run = re.fullmatch(r"`dvc repro '(.+)'`", command)[1].partition("@")
    assert stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    result = json.loads(committed(f"results/runs/{run or 'default'}.json"))
    miou = []
    for benchmark in ("things", "scenes"):
        for unit in ("pixel", dict(result["parameters"])["segment.unit"]):
            values = [seed["miou"][benchmark][unit] for seed in result["seeds"]]
            miou.append(f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""))
    assert expected == miou
