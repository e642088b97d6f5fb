"""params.yaml: bad values are refused in one line that names the key, its value and what it must be."""

import copy
import json
import math
import re
import shutil
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from pydantic import ValidationError
from ruamel.yaml import YAML

from ovseg import params, schema
from ovseg.clip import config, dense
from ovseg.study import sources

PROJECT = Path(__file__).parent.parent
VALUES = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
SHARDS = {"shards": "a.tar", "label": "a.png", "classes": "a.txt"}
KINDS = ("trained", "inferred", "untrained", "retrieved")
VIT = VALUES["clip"] | {"model": "ViT-B-16-quickgelu", "pretrained": "openai", "image_size": 224}


def having(values):
    """VALUES with some replaced or added. values: {"mgca.k": 0.1, "device": "cpu"}."""
    changed = copy.deepcopy(VALUES)
    for key, value in values.items():
        *above, last = key.split(".")
        section = changed
        for name in above:
            section = section[name]
        section[last] = value
    return changed


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """A function that returns what load_runs says of params.yaml with other values; None if it accepts them."""
    monkeypatch.chdir(PROJECT)

    def message(values, load=params.load_runs):
        monkeypatch.setattr(params, "_read", lambda path: having(values))
        try:
            load(path="params.yaml")
        except params.ParamsError as error:
            assert len(str(error).splitlines()) == 1 and str(error).startswith("params.yaml: ")
            return str(error).removeprefix("params.yaml: ")

    return message


# ---- every key, with bad values derived from its type: a new key is tested as soon as it is in params.yaml

SCHEMA = params.Params.model_json_schema()
OF_TYPE = {"null": None, "boolean": True, "integer": 3, "number": 2.5, "string": "no such value", "array": ["no such value"]}
OF_TYPE |= {"object": {"no_such_key": 1}}
FILES = {f"benchmarks.{name}.{key}" for name in VALUES["benchmarks"] for key in ("shards", "label", "classes", "calibration")}
FILES |= {"data.shards"}


def leaves(values, above=""):
    """Keys of values that are no sections, as section.key."""
    for name, value in values.items():
        yield from leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else [above + name]


LEAVES = list(leaves(VALUES))


def resolved(node):
    return resolved(SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]) if "$ref" in node else node


def described(key):
    """The kinds of values that a key allows, as JSON schemas."""
    node = resolved(SCHEMA)
    for part in key.split("."):
        others = node.get("additionalProperties") or [*node.get("patternProperties", {}).values(), None][0]  # of a dict
        node = resolved(node.get("properties", {}).get(part) or others)
    return [resolved(kind) for kind in node.get("anyOf", [node])]


def wrong_types(kinds):
    """Values of every type that none of the kinds is."""
    allowed = {kind["type"] for kind in kinds}
    allowed |= {"integer"} if "number" in allowed else set()
    return [value for name, value in OF_TYPE.items() if name not in allowed]


def out_of_range(kinds, key):
    """Values of an allowed type that lie beyond its limits, or outside of its list."""
    for kind in kinds:
        if kind["type"] in ("integer", "number"):
            if kind["type"] == "integer" or {"minimum", "exclusiveMinimum"} & set(kind):
                yield -1  # no bounded number here may be negative, and no integer
            yield from (math.nan, math.inf) if kind["type"] == "number" else ()
            yield from (kind[name] + step for name, step in (("minimum", -1), ("maximum", 1)) if name in kind)
            yield from (kind[name] for name in ("exclusiveMinimum", "exclusiveMaximum") if name in kind)
            if "multipleOf" in kind:
                yield kind.get("minimum", 0) + kind["multipleOf"] // 2
        elif kind["type"] == "string" and key not in FILES:
            yield from ("no such value", "")
        elif kind["type"] == "array":
            items = [resolved(item) for item in resolved(kind["items"]).get("anyOf", [kind["items"]])]
            if kind.get("minItems"):
                yield []
            for bad in (*wrong_types(items), *out_of_range(items, key)):
                yield [bad]
        elif kind["type"] == "object" and kind["additionalProperties"]:  # a dict by benchmark, not a section
            values = [resolved(kind["additionalProperties"])]
            for bad in (*wrong_types(values), *out_of_range(values, key)):
                yield {next(iter(VALUES["benchmarks"])): bad}


@pytest.mark.parametrize("section", [*VALUES, *(f"benchmarks.{name}" for name in VALUES["benchmarks"])])
def test_wrong_types_ranges_and_missing_keys_are_refused(section, refused):
    load = params.load_runs if section in ("ablations", "supervised") else params.load  # lines need the runs
    keys = [key for key in LEAVES if key == section or key.rpartition(".")[0] == section]
    for key in keys:
        kinds = described(key)
        for value in (*wrong_types(kinds), *(() if key in FILES else out_of_range(kinds, key))):
            line = refused({key: value}, load)
            assert line and key in line, (key, value, line)
    if section != "device":
        for value in (None, 3, "no such value", {"no_such_key": 1}):
            assert section in refused({section: value}, params.load)
    if "." not in section and section not in ("device", "benchmarks"):
        for key in VALUES[section]:
            values = having({section: {name: value for name, value in VALUES[section].items() if name != key}})
            assert f"{section}.{key}: missing" in refused({section: values[section]}, params.load)


def test_the_values_as_they_are_pass(refused):
    assert refused({}) is None and len(LEAVES) > 80


# ---- rules between keys


@pytest.mark.parametrize(
    "values, message",
    [
        ({"mgca.k": 0.5}, "mgca.k = 0.5: must be at most 0.4"),
        ({"mgca.granularity": "pixel+object"}, "must be one or more of object, region, pixel, in this order, joined by +"),
        ({"train.method": "tcl+mgca"}, "train.method = 'tcl+mgca': must be one or more of groupvit, mgca, mixreorg, pacl, simseg, "),
        ({"train.method": "mgca+supervised"}, "must be supervised alone"),
        ({"train.method": "supervised"}, "must be in lines of ablations.trained"),
        ({"train.warmup_epochs": 3.0}, "train.warmup_epochs = 3.0: must be below train.epochs, 3"),
        ({"train.processes": 7}, "train.processes = 7: must be a divisor of train.batch, 128"),
        ({"train.batch": 10000}, "train.batch = 10000: must be at most 5120, the number of pairs"),
        ({"train.method": "mgca+mixreorg", "train.batch": 130}, "must be a multiple of mixreorg.images * train.processes, 4"),
        ({"train.method": "mixreorg", "mixreorg.block": 0}, "mixreorg.block = 0: must be null if clip.cache_images is true"),
        ({"train.method": "mixreorg", "mixreorg.block": 6, "clip.cache_images": False}, "must be at most 3, CLIP's last block"),
        ({"segment.unit": "learned-group"}, "segment.unit = 'learned-group': must be pixel, meta-point or group"),
        ({"clip.cache_images": False}, "ablations.retrieved = ['reco']: must be [] if clip.cache_images is false"),
        ({"train.outliers": 0.1, "clip.cache_images": False}, "train.outliers = 0.1: must be 0 if clip.cache_images is false"),
        ({"segment.unit": "learned-group", "train.method": "groupvit"}, "must be in lines of ablations.trained"),
        ({"segment.stride": 257}, "segment.stride = 257: must be at most segment.window, 256"),
        ({"segment.window": 250, "segment.stride": 125}, "segment.window = 250: must be a multiple of CLIP's patch, 16"),
        ({"segment.meta_points": 15}, "segment.meta_points = 15: must be a square number"),
        ({"segment.meta_points": 33**2}, "segment.meta_points = 1089: must be at most 1024"),
        ({"segment.groups": 1025}, "segment.groups = 1025: must be at most 1024"),
        ({"segment.templates": ["a {}.", "a {} and {}"]}, "segment.templates.1 = 'a {} and {}': must be a text with exactly one {}"),
        ({"evaluate.units": ["pixel", "pixel"]}, "evaluate.units = ['pixel', 'pixel']: must hold each value once"),
        ({"evaluate.thresholds": {"thigns": 0.1}}, "must be for benchmarks: things, scenes"),
        ({"pretrain.patches": [8, 65]}, "must be of at most 64 patches"),
        ({"clip.image_size": 120}, "clip.image_size = 120: must be a multiple of CLIP's patch, 16"),
        ({"clip": VIT | {"model": "ViT-B-16-quickgel"}}, "open_clip_config.json; the nearest are ViT-B-16-quickgelu, "),
        ({"clip": VIT | {"model": "RN50"}}, "clip.model = 'RN50': must be an open_clip model with a plain ViT"),
        ({"clip": VIT | {"model": "coca_ViT-B-32"}}, "must be an open_clip model with a plain ViT"),
        ({"clip.model": "local-dir:nowhere"}, "clip.model = 'local-dir:nowhere': must be a model"),
        ({"clip": VIT | {"pretrained": "openaj"}}, "clip.pretrained = 'openaj': must be the path of a checkpoint, or a tag"),
        ({"clip": VIT | {"pretrained": None}}, "clip.pretrained = None: must be the path of a checkpoint"),
        ({"clip.pretrained": "openai"}, "clip.pretrained = 'openai': must be null"),
        ({"benchmarks.mine": {"label": "a.png"}}, "benchmarks.mine: must be either folder, or all of shards, label and classes"),
        ({"benchmarks.mine": {"folder": "a"} | SHARDS}, "must be either folder, or all of"),
        ({"benchmarks.mine": {"layout": "voc"} | SHARDS}, "must be layout with folder"),
        ({"benchmarks.mine": {"layout": "voc", "folder": "a", "calibration": "b"}}, "without calibration"),
        ({"benchmarks.mine": {"folder": "a", "calibration": "a"}}, "other images than the evaluated ones"),
        ({"benchmarks.voc": {"layout": "ade20k", "folder": "a"}}, "benchmarks.voc: must be of layout voc"),
        ({"mgca.gamma": 0.5}, "mgca.gamma = 0.5: no such key; the nearest is mgca.alpha"),
        ({"mcga": 3}, "mcga = 3: no such key; the nearest is mgca"),
        ({"mgca.tau": -1.0, "train.batch": 0}, "train.batch = 0: must be greater than or equal to 2; mgca.tau = -1.0: must be"),
        ({"supervised.labels": "street"}, "supervised.labels = 'street': must be a benchmark in shards (things, scenes)"),
        ({"ablations.untrained": ["clip"]}, "ablations.untrained must include maskclip"),
        ({"ablations.trained": []}, "ablations.trained must include default"),
    ],
)
def test_rules_between_keys(values, message, refused):
    line = refused(values)
    assert line and message in line


def test_values_that_are_not_used_need_not_fit(refused):
    assert refused({"mixreorg.block": 2, "ablations.trained": ["default"]}) is None  # which does not train by it
    assert refused({"supervised.labels": None, "ablations.trained": ["default"]}) is None
    assert refused({"benchmarks.mine": {"folder": "a"}, "benchmarks.voc": {"layout": "voc", "folder": "a", "optional": True}}) is None


@pytest.mark.parametrize(
    "kind, line, message",
    [
        ("trained", "mgca.taau=0.1", "no such key; the nearest is mgca.tau"),
        ("trained", "mgca.alpha=0.2,mgca.k=0.3", "must be at most 0.2"),
        ("trained", "mgca.tau=hot", "valid number"),
        ("trained", "train.seeds=1", "the same parameters as the run default"),
        ("trained", "train.workers=1", "the same parameters as the run default"),
        ("trained", "train.method=supervised,supervised.labels=things", "the same parameters as the run train.method=supervised"),
        ("trained", "tcl.tau=0.1", "the same parameters as the run default"),  # of a method that is not used
        ("trained", "mgca.tau=0.20", "the same parameters as the run mgca.tau=0.2"),
        ("trained", "mgca.tau=0.2,segment.scale=14.3", "the same parameters as the run mgca.tau=0.2"),
        ("trained", "clip.model=ViT-B-16", "open_clip|no ablation|pretrained"),
        ("trained", "segment.window=128,segment.stride=64", "no ablation, because all runs share data"),
        ("trained", "segment.unit=group", "move the line to ablations.inferred"),
        ("trained", "mgca.k", "must be section.key=value"),
        ("trained", "mgca.k=0.1,mgca.k=0.2", "mgca.k is set twice"),
        ("trained", "mgca.k=...", "must be a YAML value"),
        ("inferred", "mgca.k=0.1", "move the line to ablations.trained"),
        ("inferred", "segment.meta_points=36", "the same parameters as the run default"),
    ],
)
def test_a_bad_line_is_named(kind, line, message, refused):
    trained = ["default", "mgca.tau=0.2", "train.method=supervised"]
    said = refused({"ablations.trained": trained + [line] * (kind == "trained"), "ablations.inferred": [line] * (kind == "inferred")})
    assert f"ablations.{kind}: {line}: " in said and re.search(message, said)


@pytest.mark.parametrize("content", [b"mgca: [1,\ntrain: }", b"a: b: c", b"- device", b"just words", b"", b"a: \x00", b"# caf\xe9\n"])
def test_a_file_that_is_no_mapping_is_named(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(params.ParamsError, match=f"^{path}") as caught:
        params.load(path=path)
    assert len(str(caught.value).splitlines()) == 1


# ---- what loading gives


def test_loading_keeps_the_values_and_changes_replace_them_in_memory(tmp_path):
    p = params.load({"mgca.k": 0.1, "device": "cpu"}, PROJECT / "params.yaml")
    assert (p.mgca.k, p.device, p.mgca.alpha) == (0.1, "cpu", VALUES["mgca"]["alpha"])
    of_file = params.load(path=PROJECT / "params.yaml").model_dump(exclude_unset=True)
    assert of_file == VALUES
    with pytest.raises(ValidationError):
        p.mgca.k = 0.2
    for key in ("mgca.kk", "mgac.k", "k", "mgca.k.deep"):
        with pytest.raises(params.ParamsError, match=f"{key} = 0.1: no such key"):
            params.load({key: 0.1}, PROJECT / "params.yaml")
    with pytest.raises(params.ParamsError, match="absent.yaml cannot be read: .*No such file"):
        params.load(path=tmp_path / "absent.yaml")


def test_values_of_a_line_are_typed():
    line = "mgca.k=0,train.lr=1e-3,train.mask_equal_texts=false,mgca.granularity=object+pixel"
    expected = {"mgca.k": 0, "train.lr": 0.001, "train.mask_equal_texts": False, "mgca.granularity": "object+pixel"}
    assert params.parse_change(line) == expected


def test_runs_have_names_folders_and_what_they_depend_on():
    runs = params.load_runs(PROJECT / "params.yaml")
    assert list(runs)[0] == "default" and len(runs) == sum(len(VALUES["ablations"][kind]) for kind in KINDS)
    default, k, points, clip = (runs[name] for name in ("default", "mgca.k=0.2", "segment.meta_points=9", "clip"))
    assert [run.kind for run in (default, k, points, clip)] == ["trained", "trained", "inferred", "untrained"]
    assert (k.model, points.model, k.result) == (Path("models/mgca.k=0.2"), Path("models/default"), Path("results/runs/mgca.k=0.2.json"))
    assert k.params.mgca.k == 0.2 and clip.params.clip.dense == "clip"
    assert "mgca" in k.depends() and "tcl" not in k.depends() and k.depends() != default.depends()
    tcl = runs["train.method=tcl,segment.threshold=0.85"].depends()
    assert "tcl" in tcl and "mgca" not in tcl
    assert "mgca" not in points.depends() and points.depends()["train"] == {"seeds": 6} and clip.depends()["train"] == {}
    assert [run.params.train.seeds for run in (default, points, runs["mgca.k=0,train.seeds=6"], k)] == [6, 6, 6, 3]
    assert "workers" not in default.depends()["train"] and "batch" not in default.depends()["clip"]


def test_any_parameter_of_a_method_and_of_training_can_be_ablated(refused):
    skipped = {"seeds", "processes", "timeout_minutes", "workers", "checkpoint_steps", "method", "granularity", "labels", "outliers"}
    for section in (*params.METHODS, "train"):
        for key, value in VALUES[section].items():
            if key in skipped:
                continue
            choices = [choice for kind in described(f"{section}.{key}") for choice in kind.get("enum", [])]
            other = next((choice for choice in choices if choice != value), None)
            if other is None:
                other = 0 if value is None else not value if isinstance(value, bool) else value * 2 if isinstance(value, int) else value / 2
            method = "" if section in ("mgca", "train") else f",train.method={section}"
            line = f"{section}.{key}={str(other).lower()}{method}"
            lines = {"ablations.trained": ["default", line], "ablations.retrieved": [], "clip.cache_images": False}  # for mixreorg.block
            assert refused(lines) is None, line


def test_scientific_notation_is_a_number(tmp_path):
    text = (PROJECT / "params.yaml").read_text().replace("\n  lr: 0.016", "\n  lr: 1e-3")
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(path=tmp_path / "params.yaml").train.lr == 1e-3


@pytest.mark.parametrize("folder", ["", "notebooks/deep"])
def test_the_project_is_found_from_its_folders(folder, tmp_path, monkeypatch):
    (tmp_path / "project" / folder).mkdir(parents=True)
    (tmp_path / "project/params.yaml").touch()
    monkeypatch.chdir(tmp_path / "project" / folder)
    params.enter_project()
    assert Path.cwd() == tmp_path / "project"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(params.ParamsError, match="no params.yaml"):
        params.enter_project()


def test_devices_and_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert params.device("auto", 4) == params.device("cpu", 4) == torch.device("cpu")
    with pytest.raises(params.ParamsError, match="device = 'cuda': must be auto or cpu"):
        params.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert params.device("auto", 2) == torch.device("cuda") and params.device("cpu", 4) == torch.device("cpu")
    with pytest.raises(params.ParamsError, match="train.processes = 4: must be at most 2"):
        params.device("cuda", 4)


def test_the_first_stage_counts_shards_and_looks_into_a_checkpoint(tmp_path, monkeypatch):
    def said(**values):
        given = {"device": "cpu", "data.shards": f"{tmp_path}/*.tar", "ablations.retrieved": []}
        monkeypatch.setattr(params, "_read", lambda path: having(given | values))
        with pytest.raises(params.ParamsError) as error:
            sources.check_machine({"default": params.Run("default", "trained", {}, params.load())})
        return str(error.value)

    (tmp_path / "a.tar").touch()
    few = said(**{"train.processes": 2, "clip.cache_images": False})
    assert few == "default: train.processes = 2: must be at most 1, the number of shards"
    file, model = f"{tmp_path}/weights.pt", "ViT-S-32-alt"
    for content in ({"vision_model.embeddings.class_embedding": torch.zeros(4)}, Namespace(epoch=1)):  # Hugging Face's names; no tensors
        torch.save(content, file)
        wanted = f"must be a checkpoint of {model}: tensors alone, by open_clip's names"
        line = said(clip=VIT | {"model": model, "pretrained": file}, **{"segment.window": 256})
        assert line.startswith(f"clip.pretrained = '{file}': {wanted} (")


def test_a_model_of_the_hub_is_configured_by_its_repository(tmp_path, monkeypatch):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config.model_config("ViT-B-32")}))
    cached = {"me/mine": str(tmp_path / "open_clip_config.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: cached.get(repository))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=OSError))
    assert config.model_config("hf-hub:me/mine") == config.model_config("ViT-B-32")
    for tag, wrong in ((None, []), ("openai", ["pretrained"])):
        rules = config.model_rules("hf-hub:me/mine", tag, config.model_config("hf-hub:me/mine"))
        assert [key for key, holds, _ in rules if not holds] == wrong
    assert config.model_config("hf-hub:me/other") is None


@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-L-14-336", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384"])
def test_patch_sizes_are_those_of_open_clip(model):
    import open_clip

    assert config.model_config(model) == open_clip.get_model_config(model)
    assert config.patch_size(config.model_config(model)["vision_cfg"]) == int(model.split("-")[2])


def test_dense_modes_are_the_same_everywhere():
    assert schema.MODES == tuple(dense.DENSE_MODES)


# ---- presets

PRESETS = sorted((PROJECT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_and_changes_only_its_own_keys(preset, tmp_path):
    path = Path(shutil.copy(PROJECT / "params.yaml", tmp_path))
    params.apply_preset(preset, path)
    values, own = YAML(typ="safe").load(path.read_text()), YAML(typ="safe").load(preset.read_text())
    for section, default in VALUES.items():
        if section == "benchmarks":
            assert values[section] == own.get(section, default)
        elif isinstance(default, dict):
            assert values[section] == default | own.get(section, {})
    assert "# the object is the top alpha*L pixels" in path.read_text()  # comments stay
    assert {run.params.train.seeds for run in params.load_runs(path).values()} == {own["train"]["seeds"]}  # also those of lines
    assert len(params.load_runs(path)) == sum(len(values["ablations"][kind]) for kind in KINDS)


def test_a_bad_preset_leaves_params_as_they_were(tmp_path):
    path, preset = Path(shutil.copy(PROJECT / "params.yaml", tmp_path)), tmp_path / "preset.yaml"
    preset.write_text("mgca: {k: 0.9}")
    with pytest.raises(params.ParamsError, match="preset.yaml: .*k = 0.9: must be at most 0.4"):
        params.apply_preset(preset, path)
    assert path.read_text() == (PROJECT / "params.yaml").read_text()


def test_the_papers_preset_has_its_benchmarks_recipe_and_ablations(tmp_path):
    path = Path(shutil.copy(PROJECT / "params.yaml", tmp_path))
    params.apply_preset(PROJECT / "presets/paper.yaml", path)
    p, paper = params.load(path=path), YAML(typ="safe").load((PROJECT / "paper/tables.yaml").read_text())
    assert list(p.benchmarks) == paper["with background"]["benchmarks"] + paper["without background"]["benchmarks"]
    assert sorted(p.evaluate.thresholds) == sorted(paper["with background"]["benchmarks"])
    points = {row["points"] for row in paper["meta_points"]} - {p.segment.meta_points, 3136}  # 3136: every pixel by itself
    assert {params.parse_change(line)["segment.meta_points"] for line in p.ablations.inferred} == points
    levels = {row["granularity"] for row in paper["granularity"]} - {"none", p.mgca.granularity}
    assert {f"mgca.granularity={level}" for level in levels} | {"mgca.k=0", "mgca.k=0.4"} < set(p.ablations.trained)
    assert (p.mgca.granularity, p.mgca.alpha, p.mgca.beta, p.mgca.k, p.mgca.tau) == ("object+region+pixel", 0.4, 0.05, 0.06, 0.07)
    assert (p.train.epochs, p.train.warmup_epochs, p.train.batch, p.train.lr, p.train.weight_decay) == (15, 2, 1024, 1e-4, 0.05)
    assert (p.train.optimizer, p.train.processes, p.clip.dense, p.clip.image_size) == ("adam", 4, "maskclip", 224)
    s = p.segment
    assert (s.unit, s.meta_points, s.short_side, s.window, s.stride, len(s.templates)) == ("meta-point", 36, 448, 448, 224, 9)


def test_learning_rates_are_tried_on_other_pictures_than_the_benchmarks():
    tried = YAML(typ="safe").load((PROJECT / "presets/methods.yaml").read_text())
    assert not {b["shards"] for b in tried["benchmarks"].values()} & {b["shards"] for b in VALUES["benchmarks"].values()}
    rates = {}
    for line in tried["ablations"]["trained"][1:] + [""]:
        changes = params.parse_change(line)
        rates.setdefault(changes.get("train.method", "mgca"), set()).add(changes.get("train.lr", VALUES["train"]["lr"]))
    assert set(rates) == {*params.METHODS, "mgca+mixreorg"} and all(rate == {0.004, 0.008, 0.016} for rate in rates.values())
