"""Read params.yaml: typed parameters, the rules between keys, the runs of the study, and presets.

    python -m ovseg.params                      check params.yaml; what is wrong is one line
    python -m ovseg.params presets/paper.yaml   write a preset's values into params.yaml
"""

import copy
import functools
import io
import json
import math
import operator
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from . import methods
from .clip.config import model_config, model_rules, nearest, patch_size
from .schema import INFERENCE, LAYOUTS, PRETRAINED_CLIP, Study

METHODS = {name: methods.module(name) for name in methods.names()}
Params = create_model("Params", __base__=Study, **{name: (module.Settings, ...) for name, module in METHODS.items()})
DEFAULT = "default"  # the run of params.yaml as it is
UNUSED = {"clip": {"batch"}, "train": {"workers", "checkpoint_steps", "processes", "timeout_minutes"}}  # change no result of a run


class ParamsError(ValueError):
    """params.yaml, or a change to it, is invalid; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A run of the study. name: "default", a line of `ablations.trained` or `inferred`, a dense mode of `ablations.untrained`, or "reco".

    kind: trained (the default run too), inferred (the default run's decoders with other inference settings) or untrained (CLIP's dense
    features alone, or with retrieved pictures). changes: what it changes in params.yaml, {"mgca.k": 0.1}, but for train.seeds. params:
    params.yaml with these changes and the run's number of seeds."""

    name: str
    kind: str
    changes: dict
    params: Params

    @property
    def model(self):
        """The folder of the run's decoders."""
        return Path("models") / (self.name if self.kind == "trained" else DEFAULT)

    @property
    def result(self):
        return Path("results/runs") / f"{self.name}.json"

    @property
    def needs_images(self):
        """Whether it needs CLIP's embeddings of whole training images."""
        return self.name == "reco" or self.kind == "trained" and self.params.train.texts == "curated"

    def depends(self):
        """The values on which the run's result depends, as a dict: its DVC stage reruns when one of them changes."""
        p, train = self.params, {"trained": None, "inferred": {"seeds"}, "untrained": set()}[self.kind]
        used = {name: section.model_dump() for name, section in p.training.items()} if self.kind == "trained" else {}
        others = ("clip", "segment", "evaluate", *["reco"] * (self.name == "reco"))
        used |= {name: getattr(p, name).model_dump(exclude=UNUSED.get(name)) for name in others}
        return {"device": p.device} | used | {"train": p.train.model_dump(include=train, exclude=UNUSED["train"])}


def enter_project():
    """Make the project's folder the working directory: the nearest one at or above it that holds params.yaml."""
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), None)
    if project is None:
        raise ParamsError(f"no params.yaml in {here} or above it: start from the project's folder")
    os.chdir(project)


def load(changes=None, path="params.yaml"):
    """Read and validate a parameter file. changes: {"mgca.k": 0.1, ...} replace its values. Returns Params; raises ParamsError."""
    return _validated(_read(path), changes or {}, path)


def load_runs(path="params.yaml"):
    """All runs of the study, {name: Run}, the default run first. Raises ParamsError unless each line is a valid run unlike all others."""
    values = _read(path)
    p = _validated(values, {}, path)
    lists, default = p.ablations, Run(DEFAULT, "trained", {}, p)
    if DEFAULT not in lists.trained:
        raise ParamsError(f"{path}: ablations.trained must include {DEFAULT}: the other runs are compared with it")
    if p.clip.dense not in lists.untrained:
        raise ParamsError(f"{path}: ablations.untrained must include {p.clip.dense} (clip.dense): it is the baseline")
    if p.train.method == "supervised" or p.segment.unit == "learned-group":
        raise ParamsError(f"{path}: supervised and learned-group must be in lines of ablations.trained, not in the default run")
    runs, seen = {DEFAULT: default}, {_identity(default): DEFAULT}
    for kind in ("trained", "inferred"):
        for line in getattr(lists, kind):
            if line == DEFAULT and kind == "trained":
                continue
            try:
                changes = parse_change(line)
                seeds = {"train.seeds": min(lists.seeds, p.train.seeds)} if kind == "trained" else {}
                others = {key: value for key, value in changes.items() if key != "train.seeds"}
                run = Run(line, kind, others, _validated(values, seeds | changes, path))
                _check_keys(kind, changes)
                if (same := seen.setdefault(_identity(run), line)) != line:
                    raise ParamsError(f"the same parameters as the run {same}")
            except ParamsError as error:
                raise ParamsError(f"{path}: ablations.{kind}: {line}: {str(error).removeprefix(f'{path}: ')}") from None
            runs[line] = run
    modes = {mode: mode for mode in lists.untrained} | dict.fromkeys(lists.retrieved, p.clip.dense)
    return runs | {name: Run(name, "untrained", c := {"clip.dense": mode}, _validated(values, c, path)) for name, mode in modes.items()}


def parse_change(text):
    """"mgca.beta=0.01,mgca.granularity=object" -> {"mgca.beta": 0.01, "mgca.granularity": "object"}. Raises ParamsError. Values are
    YAML of letters, digits and . _ + -, because the text is also part of file and stage names."""
    changes = {}
    for part in text.split(",") if text else []:
        if not re.fullmatch(r"[a-z_]+\.[a-z_]+=[A-Za-z0-9._+-]+", part):
            raise ParamsError("must be section.key=value, several joined by commas, values of letters, digits and . _ + -")
        key, value = part.split("=")
        if key in changes:
            raise ParamsError(f"{key} is set twice")
        try:
            changes[key] = YAML(typ="safe").load(value)
        except (YAMLError, ValueError):
            raise ParamsError(f"{key} = {value}: must be a YAML value") from None
    return changes


def rules(p):
    """(key, whether it holds, what it must be) for every rule between keys. Each value is one that its type allows."""
    t, s, c, names = p.train, p.segment, p.clip, p.train.method.split("+")
    ordered = [name for name in METHODS if name in names]
    yield "train.method", names == ordered, f"one or more of {', '.join(METHODS)}, in this order, joined by +"
    pretrained = {"vision_cfg": {"patch_size": p.pretrain.patch, "layers": p.pretrain.vision_layers}}
    config = pretrained if c.model == PRETRAINED_CLIP else model_config(c.model)
    yield from ((f"clip.{key}", *rule) for key, *rule in model_rules(c.model, c.pretrained, config))
    vision, patch = config["vision_cfg"], patch_size(config["vision_cfg"])
    pixels = (2 * s.window // patch) ** 2  # pixel embeddings of a window: the decoder doubles the grid of patches
    units, in_shards = {s.unit, *p.evaluate.units}, [name for name, b in p.benchmarks.items() if b.shards]
    yield "clip.image_size", c.image_size % patch == 0, f"a multiple of CLIP's patch, {patch}"
    patches = (p.pretrain.size // p.pretrain.patch) ** 2
    yield "pretrain.patches", max(p.pretrain.patches) <= patches, f"of at most {patches} patches, those of an image"
    yield "train.outliers", t.outliers == 0 or c.cache_images, "0 if clip.cache_images is false"
    yield "train.processes", t.batch % t.processes == 0, f"a divisor of train.batch, {t.batch}"
    yield "train.warmup_epochs", t.warmup_epochs < t.epochs, f"below train.epochs, {t.epochs:g}"
    yield "train.batch", p.data.shards or t.batch <= p.scenes.pairs, f"at most {p.scenes.pairs}, the number of pairs"
    yield "mgca.k", p.mgca.k <= p.mgca.alpha, f"at most {p.mgca.alpha} (mgca.alpha): a positive pixel lies in the object"
    if "mixreorg" in names:
        whole, blocks = p.mixreorg.images * t.processes, vision.get("layers")
        yield "train.batch", t.batch % whole == 0, f"a multiple of mixreorg.images * train.processes, {whole}"
        yield "mixreorg.block", p.mixreorg.block is None or not c.cache_images, "null if clip.cache_images is true"
        yield "mixreorg.block", not blocks or (p.mixreorg.block or 0) < blocks, f"at most {(blocks or 1) - 1}, CLIP's last block"
    if "supervised" in names:
        yield "train.method", names == ["supervised"], "supervised alone: no other method reads label maps"
        yield "supervised.labels", p.supervised.labels in in_shards, f"a benchmark in shards ({', '.join(in_shards) or 'there is none'})"
    yield "ablations.retrieved", not p.ablations.retrieved or c.cache_images, "[] if clip.cache_images is false"
    yield "segment.unit", s.unit != "learned-group" or "groupvit" in names, "pixel, meta-point or group: groupvit learns groups"
    yield "segment.window", s.window % patch == 0, f"a multiple of CLIP's patch, {patch}"
    yield "segment.stride", s.stride <= s.window, f"at most segment.window, {s.window}: a larger stride leaves pixels out"
    yield "segment.meta_points", math.isqrt(s.meta_points) ** 2 == s.meta_points, "a square number: meta-points lie on a square grid"
    for key, unit in (("meta_points", "meta-point"), ("groups", "group")):
        yield f"segment.{key}", unit not in units or getattr(s, key) <= pixels, f"at most {pixels}, the pixel embeddings of a window"
    yield "evaluate.thresholds", set(p.evaluate.thresholds) <= set(p.benchmarks), f"for benchmarks: {', '.join(p.benchmarks)}"
    for name, b in p.benchmarks.items():
        key, shards = f"benchmarks.{name}", (b.shards, b.label, b.classes)
        yield key, not any(shards) if b.folder else all(shards), "either folder, or all of shards, label and classes"
        yield key, not b.layout or (b.folder and not b.calibration), "layout with folder, without calibration"
        yield key, not b.calibration or b.calibration != (b.folder or b.shards), "calibrated on other images than the evaluated ones"
        yield key, name not in LAYOUTS or b.layout == name, f"of layout {name}, to which this name belongs; or rename it"


def device(name, processes=1):
    """The torch device named by params' `device`: auto is a GPU if available. processes: how many train, each on a GPU of its own.
    Raises ParamsError if there are fewer GPUs."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not gpus:
        raise ParamsError("device = 'cuda': must be auto or cpu: this machine has no GPU that torch can use")
    if name != "cpu" and gpus and processes > gpus:
        raise ParamsError(f"train.processes = {processes}: must be at most {gpus}, the number of GPUs")
    return torch.device("cuda" if gpus and name != "cpu" else "cpu")


def flatten(sections):
    """{"section.key": value} of {name: Section}, for results."""
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.model_dump().items()}


def _read(path):
    """The sections of a parameter file as dicts."""
    try:
        values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))  # YAML 1.2, as DVC: 1e-3 is a number
    except (OSError, ValueError, YAMLError) as error:
        raise ParamsError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold the sections {', '.join(Params.model_fields)}")
    return values


def _validated(values, changes, path):
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *above, last = key.split(".")
        section = values.get(above[0]) if len(above) == 1 else values if not above else None
        if not isinstance(section, dict) or last not in section:
            raise ParamsError(f"{path}: {key} = {value!r}: {_unknown(key)}")
        section[last] = value
    try:
        p = Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{path}: {'; '.join(_line(e) for e in error.errors())}") from None
    for key, holds, wanted in rules(p):
        if not holds:
            name, *inner = key.split(".")
            value = functools.reduce(operator.getitem, inner, values[name])
            raise ParamsError(f"{path}: {key}{'' if isinstance(value, dict) else f' = {value!r}'}: must be {wanted}")
    return p


def _line(error):
    """A pydantic error as `key = value: what it must be`."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{key}: missing; it has no default"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{key}{value}: {_unknown(key) if error['type'] == 'extra_forbidden' else message}"


def _unknown(key):
    known = [f"{name}.{inner}" for name, field in Params.model_fields.items() for inner in getattr(field.annotation, "model_fields", [])]
    return f"no such key; the nearest is {nearest(key, [*known, *Params.model_fields], 1)}"


def _check_keys(kind, changes):
    """Raises ParamsError if a run of this kind cannot make these changes."""
    inference = {f"segment.{key}" for key in INFERENCE}
    of_training = {key for key in changes if key.split(".")[0] in ("train", "cocu", *METHODS)}
    if others := set(changes) - inference - of_training:
        raise ParamsError(f"{min(others)}: no ablation, because all runs share data and features; change it in params.yaml")
    if kind == "inferred" and of_training:
        raise ParamsError(f"{min(of_training)}: it needs training; move the line to ablations.trained")
    if kind == "trained" and not of_training:
        raise ParamsError("changes no parameter of training; move the line to ablations.inferred")


def _identity(run):
    """What tells runs apart: all values that change a result, but not the number of seeds."""
    values = Run("", "trained", {}, run.params).depends()
    values["train"].pop("seeds")
    values.get("supervised", {}).pop("labels", None)
    return json.dumps(values, sort_keys=True)


def apply_preset(preset, path="params.yaml"):
    """Write the values of a preset into a parameter file, whose comments stay. `benchmarks` and lists are replaced as a whole."""
    yaml = YAML()
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    values = yaml.load(Path(path).read_text(encoding="utf-8"))
    for name, section in _read(preset).items():
        if isinstance(section, dict) and name != "benchmarks" and isinstance(values.get(name), dict):
            values[name].update(section)
        else:
            values[name] = section
    out = io.StringIO()
    yaml.dump(values, out)
    _validated(YAML(typ="safe").load(out.getvalue()), {}, preset)
    Path(path).write_text(out.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    try:
        presets = [Path(preset).resolve() for preset in sys.argv[1:]]
        if {"-h", "--help"} & set(sys.argv):
            sys.exit(__doc__)
        enter_project()
        for preset in presets:
            apply_preset(preset)
        print(f"params.yaml is valid: {len(load_runs())} runs")
    except ParamsError as error:
        sys.exit(f"{error}")
