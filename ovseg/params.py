"""Read params.yaml: typed, validated parameters, and changes to them.

`python -m ovseg.params` checks params.yaml, the machine and the disk (preflight.py), and reports what is wrong in one line. No value has a
default here: params.yaml holds all of them, so that a reader finds each in one place.
"""

import copy
import difflib
import os
import re
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from .methods import groupvit, mgca, mixreorg, pacl, supervised, tcl
from .schema import Ablations, Benchmark, Benchmarks, Clip, Data, Evaluate, Figures, Pretrain, Scenes, Section, Segment, Train
from .values import METHODS

# Keys that may change between evaluations; the other values of `segment` are fixed when windows are encoded.
INFERENCE = [
    f"segment.{key}" for key in ("unit", "meta_points", "groups", "affinity", "batch", "precision", "averaged", "scale", "threshold")
]


class Params(Section):
    """All of params.yaml."""

    device: Literal["auto", "cpu", "cuda"]
    scenes: Scenes
    data: Data
    benchmarks: Benchmarks
    clip: Clip
    pretrain: Pretrain
    mgca: mgca.Settings
    mixreorg: mixreorg.Settings
    tcl: tcl.Settings
    pacl: pacl.Settings
    groupvit: groupvit.Settings
    supervised: supervised.Settings
    train: Train
    segment: Segment
    evaluate: Evaluate
    ablations: Ablations
    figures: Figures

    @property
    def sections(self):
        """{method: its section} of train.method; None for a method without one."""
        return {name: getattr(self, name, None) for name in self.train.method.split("+")}

    @field_validator("train")
    @classmethod
    def _fits_its_method(cls, train, info):
        in_shards = [name for name, benchmark in info.data.get("benchmarks", {}).items() if benchmark.shards]
        labels = info.data["supervised"].labels if "supervised" in info.data else None
        if train.method == "supervised" and labels not in in_shards:
            allowed = f"allowed are benchmarks in shards, {', '.join(in_shards)}" if in_shards else "there is no benchmark in shards"
            raise ValueError(f"method = 'supervised' learns from label maps as supervised.labels = {labels!r} has them: {allowed}")
        mixed = info.data["mixreorg"].images if "mixreorg" in info.data else 1
        if "mixreorg" in train.method.split("+") and train.batch % (mixed * train.processes):
            raise ValueError(
                f"batch = {train.batch}: with mixreorg a multiple of mixreorg.images * train.processes, {mixed * train.processes}"
            )
        if "clip" in info.data and info.data["clip"].cache_images:
            block = getattr(info.data.get("mixreorg"), "block", None)
            if "mixreorg" in train.method.split("+") and block is not None:
                raise ValueError(f"mixreorg.block = {block!r} encodes images in each step: set clip.cache_images to false")
        return train

    @field_validator("segment")
    @classmethod
    def _unit_of_its_method(cls, segment, info):
        if segment.unit == "learned-group" and "train" in info.data and "groupvit" not in info.data["train"].method.split("+"):
            raise ValueError("unit = 'learned-group' needs the groups that train.method = groupvit learns")
        return segment

    @field_validator("evaluate")
    @classmethod
    def _thresholds_of_benchmarks(cls, evaluate, info):
        unknown = set(evaluate.thresholds) - set(info.data.get("benchmarks", evaluate.thresholds))
        if unknown:
            raise ValueError(
                f"thresholds of {', '.join(sorted(unknown))}: allowed are those of benchmarks, {', '.join(info.data['benchmarks'])}"
            )
        return evaluate


class ParamsError(ValueError):
    """params.yaml, or a change to it, is invalid; the message is one line."""


def root():
    """The project's folder: the nearest one at or above the working directory that holds params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise ParamsError(f"no params.yaml in {here} or above it: start from the project's folder")


def enter_project():
    """Make the project's folder the working directory: JupyterLab starts a notebook in its own folder."""
    os.chdir(root())


def load(changes=None, path="params.yaml"):
    """Read and validate params.yaml. Returns Params; raises ParamsError.

    changes: {"mgca.k": 0.1, ...}, values that replace those in the file. Without changes, the lines of `ablations` are checked too.
    """
    return _validated(_values(path), changes, path) if changes else load_runs(path)[""]


def load_runs(path="params.yaml"):
    """Params of the default run and of each line of ablations.trained and inferred: {line: Params}, "" for the default run.

    Raises ParamsError unless each line is a valid run that differs from all others.
    """
    values = _values(path)
    runs = {"": _validated(values, {}, path)}
    if runs[""].train.method == "supervised":
        raise ParamsError(f"{path}: train.method = 'supervised': a line of ablations.trained, not the default run")
    if runs[""].segment.unit == "learned-group":
        raise ParamsError(f"{path}: segment.unit = 'learned-group': in a line of ablations.trained, for untrained runs have no groups")
    lists, seen = runs[""].ablations, {_identity(runs[""]): "the default run"}
    if runs[""].clip.dense not in lists.untrained:
        raise ParamsError(f"{path}: ablations.untrained: must hold clip.dense, {runs[''].clip.dense}: untrained, it is the baseline")
    for kind, lines in {"trained": lists.trained, "inferred": lists.inferred}.items():
        for line in lines:
            try:
                changes = parse_change(line)
                run = _validated(values, changes, path)
                _check_keys(kind, changes)
                if _identity(run) in seen:
                    raise ParamsError(f"the same run as {seen[_identity(run)]}")
            except ParamsError as error:
                raise ParamsError(f"{path}: ablations.{kind}: {line}: {str(error).removeprefix(f'{path}: ')}") from None
            seen[_identity(run)], runs[line] = line, run
    return runs


def parse_change(text):
    """"mgca.beta=0.01,mgca.granularity=object" -> {"mgca.beta": 0.01, "mgca.granularity": "object"}. Raises ParamsError.

    Keys are section.key; values are YAML of letters, digits and . _ + -: the text is also part of file and stage names.
    """
    changes = {}
    for part in text.split(",") if text else []:
        if not re.fullmatch(r"[a-z_]+\.[a-z_]+=[A-Za-z0-9._+-]+", part):
            raise ParamsError("expected section.key=value, several joined by commas, values of letters, digits and . _ + -")
        key, value = part.split("=")
        if key in changes:
            raise ParamsError(f"{key} comes twice")
        changes[key] = YAML(typ="safe").load(value)
    return changes


def _values(path):
    """The sections of a parameter file as dicts."""
    try:
        values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))  # YAML 1.2, as DVC: 1e-3 is a number
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} holds no sections: expected {', '.join(Params.model_fields)}")
    return values


def _validated(values, changes, path):
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *above, last = key.split(".")
        section = values
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            known = [f"{name}.{inner}" for name, part in values.items() if isinstance(part, dict) for inner in part]
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ParamsError(f"{key} = {value!r}: no such key in {path}; the nearest is {nearest[0]}")
        section[last] = value
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError("; ".join(_line(e, path) for e in error.errors())) from None


def _check_keys(kind, changes):
    """Raises ParamsError if a run of this kind cannot make these changes."""
    training = [key for section in (*METHODS, "train") if section in Params.model_fields for key in _keys(section)]
    allowed = training + INFERENCE if kind == "trained" else INFERENCE
    for key in changes:
        if key not in allowed:
            why = "it needs training" if key in training else "data and features are shared by all runs; change it for the whole study"
            raise ParamsError(f"{key}: {why}; allowed here: {', '.join(allowed)}")
    if kind == "trained" and not set(changes) & set(training):
        raise ParamsError("trains nothing new: it belongs to ablations.inferred")


def _keys(section):
    return [f"{section}.{key}" for key in Params.model_fields[section].annotation.model_fields]


def _identity(params):
    """The identity of a run: all values except lists of runs, unused methods, the number of seeds, and values that change no result."""
    unused = {name: True for name in METHODS if name not in params.sections}
    excluded = {"ablations": True, "train": {"seeds", "workers", "checkpoint_steps"}, "supervised": {"labels"}}
    return params.model_dump_json(exclude=excluded | unused)


def flatten(sections):
    """{"section.key": value} of {name: Section}, for results."""
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.model_dump().items()}


def _line(error, path):
    """One pydantic error as `key = value: what is allowed`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = Params
        for part in error["loc"][:-1]:
            annotation = section.model_fields[part].annotation
            section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else Benchmark
            if section is Benchmark:
                break
        return f"{path}: {key} = {error['input']!r}: unknown key; allowed here: {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{path}: {key}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{path}: {key}{value}: {message}"


def device(name):
    """The torch device named by params' `device`: auto is a GPU if available. Raises ParamsError for cuda without a GPU."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("device = 'cuda': this machine has no GPU that torch can use; allowed here: auto, cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def processes(count, device):
    """Raises ParamsError if `count` processes would train on GPUs and this machine has fewer. device: torch.device."""
    import torch

    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ParamsError(f"train.processes = {count}: allowed are 1..{torch.cuda.device_count()}, the GPUs of this machine")


if __name__ == "__main__":
    from ovseg import params, preflight  # imported by name: as __main__, this module's ParamsError is a different class

    try:
        params.enter_project()
        runs = params.load_runs()
        preflight.check(runs)
        preflight.check_files(runs)
    except params.ParamsError as error:
        sys.exit(f"{error}")
