"""One pinned set of packages, whichever way it is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_lock_pins_exact_versions_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text
    for requirement in lock():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement


def test_lock_pins_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {canonicalize_name(requirement.name) for requirement in lock()}
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= pinned


def test_conda_and_make_install_the_same_lock_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda, (pip,) = environment["dependencies"][:-1], environment["dependencies"][-1:]
    assert [re.split(r"[ =<>]", entry)[0] for entry in conda] == ["python", "pip", "git", "make"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    assert "-r requirements.lock" in installs and "--no-deps -e ." in installs


def test_installed_packages_are_the_pinned_ones():
    for requirement in lock():
        if requirement.marker is None or requirement.marker.evaluate():
            assert metadata.version(requirement.name) in requirement.specifier, requirement
