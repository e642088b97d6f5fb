"""One pinned set of packages, whichever way it is installed; what is imported is asked for; other tools have the pinned versions."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny import ROOT


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_lock_pins_exact_versions_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text
    for requirement in lock():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement


def asked_for(*extras):
    """Names of what pyproject.toml asks for: the core, and some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_lock_pins_the_core_and_what_the_study_and_the_tests_need():
    assert asked_for("study", "test") <= {canonicalize_name(requirement.name) for requirement in lock()}
    assert "--extra study --extra test" in (ROOT / "Makefile").read_text()


def imported(folder):
    """Top-level modules that a folder's code imports from elsewhere than Python and this repository."""
    own = {path.stem for path in ROOT.glob("tests/**/*.py")} | {path.stem for path in ROOT.glob("scripts/*.py")} | {"ovseg"}
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - own - sys.stdlib_module_names


@pytest.mark.parametrize("folder, extras", [("ovseg", "study"), ("scripts", "study cluster"), ("tests", "study test browser")])
def test_what_is_imported_is_asked_for(folder, extras):
    packages, modules = metadata.packages_distributions(), imported(folder)
    given = asked_for(*extras.split()) | {"pyarrow"}  # large, and of use for tables in parquet only: who has these has it
    assert "torch" in modules
    assert not {module for module in modules if not given & {canonicalize_name(name) for name in packages.get(module, [module])}}


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


def test_hooks_before_a_commit_have_the_pinned_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in lock()}
    versions = {hook["repo"].rpartition("/")[2].removesuffix("-pre-commit"): hook["rev"].removeprefix("v") for hook in hooks}
    assert set(versions) == {"ruff", "nbstripout"}
    assert all(pinned[name] == f"=={version}" for name, version in versions.items())


def test_the_workflow_runs_what_make_knows_and_uploads_what_the_quick_study_leaves():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+)(?=[\w -]*:)", (ROOT / "Makefile").read_text(), re.M))
    used = {target for command in commands for target in re.findall(r"\bmake ([\w-]+)", command)}
    assert used == {"test", "quick"} and used <= targets
    uploads = [step["with"]["path"].split() for job in jobs.values() for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert any({"quick/runs/", "quick/results/"} <= set(paths) for paths in uploads)
