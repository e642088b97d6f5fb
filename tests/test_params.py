import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from ovseg import params, schema
from ovseg.study import report
from ovseg.values import METHODS

PROJECT = Path(__file__).parent.parent
VALUES = yaml.safe_load((PROJECT / "params.yaml").read_text())
EPOCHS, WINDOW = VALUES["train"]["epochs"], VALUES["segment"]["window"]


@pytest.fixture
def written(tmp_path):
    """Write values, or text, or bytes, as a params.yaml; returns its path."""

    def write(content):
        path = tmp_path / "params.yaml"
        text = yaml.safe_dump(content) if isinstance(content, dict) else content
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def having(key, value):
    """VALUES with one value replaced or added."""
    values = copy.deepcopy(VALUES)
    *above, last = key.split(".")
    section = values
    for name in above:
        section = section[name]
    section[last] = value
    return values


def message(path, changes=None):
    with pytest.raises(params.ParamsError) as caught:
        params.load(changes, path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_projects_own_values_are_valid():
    p = params.load(path=PROJECT / "params.yaml")
    assert p.model_dump(exclude={"benchmarks"}) == {name: value for name, value in VALUES.items() if name != "benchmarks"}
    assert set(p.benchmarks) == set(VALUES["benchmarks"])


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("device", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("scenes.size", 16, "greater than or equal to 32"),
        ("scenes.omit", -0.1, "greater than or equal to 0"),
        ("data.max_bad_fraction", 1.5, "less than or equal to 1"),
        ("data.shards", 3, "string"),
        ("clip.precision", "float16", "'float32' or 'bfloat16'"),
        ("clip.dense", "proxyclip", "'clip', 'maskclip', 'sclip', 'clearclip', 'naclip' or 'pearl'"),
        ("clip.cache_images", "sometimes", "boolean"),
        ("clip.batch", True, "integer"),
        ("pretrain.vision_width", 100, "multiple of 64"),
        ("pretrain.phases", [{"patches": [65], "pictures": 1}], "at most the 64 patches"),
        ("mgca.granularity", ["object", "pixel"], "valid string"),
        ("mgca.alpha", 0, "greater than 0"),
        ("mgca.beta", 1.01, "less than or equal to 1"),
        ("mgca.k", 0.5, "at most alpha, 0.4"),
        ("mgca.tau", 0.0, "greater than 0"),
        ("mgca.direction", "back", "'image-to-text', 'text-to-image' or 'both'"),
        ("train.batch", 1, "greater than or equal to 2"),
        ("train.batch", "64", "integer"),
        ("train.batch", 6.5, "integer"),
        ("train.method", "mixreorgs", "one of mgca, mixreorg, tcl, pacl, groupvit, supervised, or several"),
        ("train.method", "tcl+mgca", "in this order, joined by +"),
        ("train.method", "mgca+supervised", "several of these but supervised, in this order, joined by +"),
        ("train.method", "tcl+tcl", "one of mgca"),
        ("train.method", "", "one of mgca"),
        ("train.lr", "fast", "number"),
        ("train.lr", float("nan"), "finite"),
        ("train.seeds", 0, "greater than or equal to 1"),
        ("train.seeds", None, "integer"),
        ("train.optimizer", "sgd", "'adam' or 'adamw'"),
        ("train.warmup_epochs", float(EPOCHS), f"below train.epochs, {EPOCHS}"),
        ("segment.stride", WINDOW + 1, f"at most segment.window, {WINDOW}"),
        ("segment.precision", "float16", "'float32' or 'bfloat16'"),
        ("segment.meta_points", 15, "square number"),
        ("segment.unit", "superpixel", "'pixel', 'meta-point', 'group' or 'learned-group'"),
        ("segment.threshold", 1.2, "less than or equal to 1"),
        ("benchmarks", {}, "at least 1"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(key, value, allowed, written):
    line = message(written(having(key, value)))
    assert key in line and allowed in line
    assert value == {} or f"= {value!r}" in line
    assert message(written(VALUES), {key: value}) == line  # a change is held to the same rules


def test_the_names_of_dense_modes_are_the_same_everywhere():
    from ovseg.clip import dense

    assert get_args(schema.Dense) == tuple(dense.DENSE_MODES) == tuple(report.DENSE_TITLES)


@pytest.mark.parametrize(
    "modes, allowed",
    [
        (["clip", "sclip"], "must hold clip.dense, maskclip"),
        ([], "must hold clip.dense, maskclip"),
        (["maskclip", "clip", "maskclip"], "each value once"),
        (["maskclip", "proxyclip"], "'clip', 'maskclip', 'sclip', 'clearclip', 'naclip' or 'pearl'"),
    ],
)
def test_untrained_runs_hold_the_baseline_each_once(modes, allowed, written):
    values = having("ablations.untrained", modes)
    values["clip"]["dense"] = "maskclip"
    line = message(written(values))
    assert "ablations.untrained" in line and allowed in line


# ---- lines of ablations


def with_lines(trained=(), inferred=()):
    values = having("ablations.trained", list(trained))
    values["ablations"]["inferred"] = list(inferred)
    return values


def another(field, value):
    """Another value than the default's that the field accepts."""
    if value in METHODS:
        return "tcl+pacl"
    if value is None:
        return 0
    choices = [c for part in (field.annotation, *field.metadata) for c in get_args(part) if isinstance(c, str)]
    if choices:
        return next(choice for choice in choices if choice != value)
    return not value if isinstance(value, bool) else value * 2 if isinstance(value, int) else value / 2


@pytest.mark.parametrize(
    "key",
    [f"{method}.{key}" for method in METHODS for key in VALUES[method] if key not in ("granularity", "labels")]
    + [f"train.{key}" for key in schema.Train.model_fields if key not in ("seeds", "processes", "workers", "checkpoint_steps")],
)
def test_any_parameter_of_the_method_and_its_training_is_an_ablation(key, written):
    section, name = key.split(".")
    value = another(getattr(schema, section.capitalize()).model_fields[name], VALUES[section][name])
    method = {"train.method": section} if section not in ("mgca", "train") else {}
    line = ",".join(f"{k}={str(v).lower()}" for k, v in {key: value, **method}.items())
    values = with_lines([line])
    values["clip"]["cache_images"] = False  # some of them run CLIP in each step
    p = params.load(path=written(values))
    assert p.ablations.trained == [line] and params.parse_change(line) == {key: value, **method}


@pytest.mark.parametrize(
    "line, said",
    [
        ("mgca.taau=0.1", "no such key in .*; the nearest is mgca.tau"),
        ("mgca.k=0.9", "at most alpha, 0.4"),
        ("mgca.alpha=0.2,mgca.k=0.3", "at most alpha, 0.2"),
        ("mgca.tau=hot", "valid number"),
        ("mgca.k=0.06", "the same run as the default run"),
        ("mgca.granularity=object+region+pixel", "the same run as the default run"),
        ("train.seeds=1", "the same run as the default run"),
        ("mgca.tau=0.2", "the same run as mgca.tau=0.2"),
        ("train.seeds=1,mgca.tau=0.20", "the same run as mgca.tau=0.2"),
        ("clip.model=ViT-B-16", "data and features are shared by all runs"),
        ("segment.window=128", "data and features are shared by all runs"),
        ("segment.unit=group", "belongs to ablations.inferred"),
        ("mgca.k", "expected section.key=value"),
        ("", "expected section.key=value|trains nothing new"),
        ("mgca.k=0.1, mgca.alpha=0.5", "expected section.key=value"),
        ("train.lr=1/8", "expected section.key=value"),
        ("mgca.k=0.1,mgca.k=0.2", "mgca.k comes twice"),
    ],
)
def test_a_bad_line_is_named_before_any_work(line, said, written):
    found = message(written(with_lines(["mgca.tau=0.2", line])))
    assert f"ablations.trained: {line}: " in found and re.search(said, found)


@pytest.mark.parametrize(
    "line, said",
    [
        ("mgca.k=0.1", "it needs training"),
        ("segment.meta_points=26", "square number"),
        ("segment.meta_points=36", "the same run as the default run"),
        ("segment.stride=64", "shared by all runs"),
    ],
)
def test_a_bad_line_of_inference_is_named(line, said, written):
    assert re.search(said, message(written(with_lines(inferred=[line]))))


def test_lines_in_another_order_are_the_same_run(written):
    lines = ["mgca.k=0.1,mgca.tau=0.1", "mgca.tau=0.1,mgca.k=0.1"]
    assert "the same run as mgca.k=0.1,mgca.tau=0.1" in message(written(with_lines(lines)))


def test_the_values_of_a_line_are_typed():
    line = "mgca.k=0,train.lr=1e-3,train.mask_equal_texts=false,mgca.granularity=object+pixel"
    found = params.parse_change(line)
    assert found == {"mgca.k": 0, "train.lr": 0.001, "train.mask_equal_texts": False, "mgca.granularity": "object+pixel"}
    assert params.parse_change("") == {}


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", "a {name}", "", "a {} in {place}", "{} {!r}", "{} {", "{} }"])
def test_a_template_needs_exactly_one_slot(template, written):
    line = message(written(having("segment.templates", ["a {}.", template])))
    assert f"segment.templates.1 = {template!r}" in line and "exactly one {}" in line


@pytest.mark.parametrize(
    "granularity",
    ["", "+", "objects", "Object", "object+objects", "object+object", "pixel+object", "object+", "object region", "object + region"],
)
def test_granularity_is_of_known_levels_each_once(granularity, written):
    line = message(written(having("mgca.granularity", granularity)))
    assert f"mgca.granularity = {granularity!r}: one or more of object, region, pixel, in this order, joined by +" in line
    assert message(written(VALUES), {"mgca.granularity": granularity}) == line


@pytest.mark.parametrize(
    "granularity, levels",
    [
        ("object", ("object",)),
        ("pixel", ("pixel",)),
        ("region+pixel", ("region", "pixel")),
        ("object+pixel", ("object", "pixel")),
        ("object+region+pixel", ("object", "region", "pixel")),
    ],
)
def test_granularity_names_its_levels(granularity, levels, written):
    p = params.load({"mgca.granularity": granularity}, written(VALUES))
    assert p.mgca.levels == levels and p.mgca.granularity == granularity


@pytest.mark.parametrize("key", ["train.epochs", "train.lr", "mgca.tau", "segment.scale"])
def test_infinity_is_no_value(key, written):

    assert key in message(written(having(key, float("inf"))))


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("mgca.gamma", 0.5, schema.Mgca.model_fields),
        ("train.learning_rate", 0.1, schema.Train.model_fields),
        ("mcga", 3, schema.Params.model_fields),
        ("benchmarks.things.classs", "x", schema.Benchmark.model_fields),
    ],
)
def test_an_unknown_key_is_named_with_the_known_ones(key, value, allowed, written):
    line = message(written(having(key, value)))
    assert f"{key} = {value!r}" in line and ", ".join(allowed) in line


@pytest.mark.parametrize("section", [name for name in VALUES if name not in ("device", "benchmarks")])
def test_every_key_must_be_there(section, written):
    for key in VALUES[section]:
        values = copy.deepcopy(VALUES)
        del values[section][key]
        assert f"{section}.{key}: missing" in message(written(values))


def test_every_section_must_be_there(written):
    for section in VALUES:
        line = message(written({name: value for name, value in VALUES.items() if name != section}))
        assert f"{section}: missing" in line


@pytest.mark.parametrize(
    "benchmark",
    [
        {"label": "a.png"},
        {"shards": "a.tar", "label": "a.png"},
        {},
        {"folder": "a", "shards": "a.tar", "label": "a.png", "classes": "a.txt"},
    ],
)
def test_a_benchmark_is_either_a_folder_or_shards(benchmark, written):
    line = message(written(having("benchmarks.mine", benchmark)))
    assert "benchmarks.mine" in line and "either folder, or" in line


def test_a_benchmark_in_a_folder_is_valid(written):
    assert params.load(path=written(having("benchmarks.mine", {"folder": "a"}))).benchmarks["mine"].folder == "a"


@pytest.mark.parametrize("name", ["voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k"])
def test_a_benchmark_of_the_paper_has_its_own_layout(name, written):
    found = params.load(path=written(having(f"benchmarks.{name}", {"layout": name, "folder": "a", "optional": True}))).benchmarks[name]
    assert found.layout == name and found.optional
    other = "voc" if name != "voc" else "ade20k"
    for benchmark in ({"folder": "a"}, {"layout": other, "folder": "a"}, {"shards": "a.tar", "label": "a.png", "classes": "a.txt"}):
        line = message(written(having(f"benchmarks.{name}", benchmark)))
        assert f"benchmarks: {name} is a benchmark of the paper and needs layout: {name}" in line
    assert params.load(path=written(having("benchmarks.mine", {"layout": name, "folder": "a"}))).benchmarks["mine"].layout == name


@pytest.mark.parametrize(
    "benchmark, allowed",
    [
        ({"layout": "voc"}, "layout goes with folder"),
        ({"layout": "voc", "shards": "a.tar", "label": "a.png", "classes": "a.txt"}, "layout goes with folder"),
        ({"layout": "voc", "folder": "a", "classes": "a.txt"}, "layout goes with folder"),
        ({"layout": "voc", "folder": "a", "calibration": "b"}, "calibration goes without layout"),
        ({"layout": "voc21", "folder": "a"}, "'voc', 'voc20', 'context'"),
        ({"folder": "a", "calibration": "a"}, "other pictures than those evaluated"),
        ({"shards": "a.tar", "label": "a.png", "classes": "a.txt", "calibration": "a.tar"}, "other pictures than those evaluated"),
        ({"folder": "a", "optional": "yes"}, "boolean"),
    ],
)
def test_a_benchmark_with_a_wrong_layout_or_calibration(benchmark, allowed, written):
    line = message(written(having("benchmarks.mine", benchmark)))
    assert "benchmarks.mine" in line and allowed in line


def test_a_benchmark_is_not_optional_unless_it_says_so(written):
    found = params.load(path=written(having("benchmarks.mine", {"folder": "a", "calibration": "b"}))).benchmarks["mine"]
    assert not found.optional and found.calibration == "b" and found.layout is None


def test_two_mistakes_are_one_line(written):
    values = having("mgca.tau", -1.0)
    values["train"]["batch"] = 0
    line = message(written(values))
    assert "mgca.tau = -1.0" in line and "train.batch = 0" in line


@pytest.mark.parametrize("text", ["mgca: [1,\ntrain: }", "a: b: c", "- device\n- scenes", "just words", "", "a: \x00"])
def test_what_is_no_mapping_is_an_error_that_names_the_file(text, written):
    path = written(text)
    assert str(path) in message(path)


def test_a_file_that_is_no_text_is_an_error_that_names_it(written):

    path = written(yaml.safe_dump(VALUES).encode() + b"# caf\xe9\n")
    assert str(path) in message(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    assert str(tmp_path / "absent.yaml") in message(tmp_path / "absent.yaml")


def test_changes_replace_values_in_memory_only(written):
    path = written(VALUES)
    before = path.read_bytes()
    p = params.load({"mgca.k": 0.1, "train.seeds": 7, "device": "cpu", "evaluate.thresholds": {"things": 0.5}}, path)
    assert (p.mgca.k, p.train.seeds, p.device, p.evaluate.thresholds) == (0.1, 7, "cpu", {"things": 0.5})
    assert p.mgca.alpha == VALUES["mgca"]["alpha"]
    assert path.read_bytes() == before and params.load(path=path).mgca.k == VALUES["mgca"]["k"]


@pytest.mark.parametrize("key", ["mgca.kk", "mgac.k", "k", "mgca.k.deep", "mgca"])
def test_a_change_of_an_unknown_key_fails(key, written):
    assert key in message(written(VALUES), {key: 0.1})


def test_values_do_not_change_after_loading():
    p = params.load(path=PROJECT / "params.yaml")
    with pytest.raises(ValidationError):
        p.mgca.k = 0.2


@pytest.mark.parametrize("folder", ["", "notebooks", "notebooks/deep"])
def test_the_project_is_found_from_its_folders(folder, written, monkeypatch):
    project = written(VALUES).parent
    (project / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(project / folder)
    params.enter_project()
    assert Path.cwd().resolve() == project.resolve()
    assert params.load().train.batch == VALUES["train"]["batch"]


def test_outside_of_a_project_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(params.ParamsError, match="no params.yaml"):
        params.enter_project()


def run(folder):
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run([sys.executable, "-m", "ovseg.params"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_is_silent_on_good_values(written):
    done = run(written(VALUES).parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_says_in_one_line_what_is_wrong(written):
    done = run(written(having("mgca.k", 0.9)).parent)
    assert done.returncode != 0 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "mgca.k = 0.9" in done.stderr and "at most alpha, 0.4" in done.stderr


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert params.device("auto") == params.device("cpu") == torch.device("cpu")
    with pytest.raises(params.ParamsError, match="device = 'cuda'.*allowed here: auto, cpu"):
        params.device("cuda")


@pytest.mark.parametrize("written_as, value", [("1e-3", 1e-3), ("1e-05", 1e-5), ("5.0E-4", 5e-4)])
def test_numbers_in_scientific_notation_are_numbers(tmp_path, written_as, value):
    text = re.sub(r"(?m)^  lr: 0.016", f"  lr: {written_as}", (Path(__file__).parent.parent / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(path=tmp_path / "params.yaml").train.lr == value


def test_a_batch_that_does_not_divide_among_processes_is_named():
    with pytest.raises(params.ParamsError, match="train.processes = 7: a divisor of train.batch"):
        params.load({"train.processes": 7}, Path(__file__).parent.parent / "params.yaml")


@pytest.mark.parametrize("labels, allowed", [(None, "scenes, things"), ("street", "scenes, things"), ("scenes", "no benchmark in shards")])
def test_the_supervised_reference_needs_a_benchmark_in_shards(written, labels, allowed):
    values = having("supervised.labels", labels)
    if labels == "scenes":
        values |= {"benchmarks": {"street": {"folder": "street"}}, "evaluate": values["evaluate"] | {"thresholds": {}}}
    values["ablations"] = values["ablations"] | {"trained": ["mgca.k=0"]}
    params.load(path=written(values))  # what nothing learns from does not matter
    values["ablations"]["trained"].append("train.method=supervised")
    line = message(written(values))
    assert "ablations.trained: train.method=supervised: train" in line and f"supervised.labels = {labels!r}" in line and allowed in line


def test_the_default_run_is_not_the_supervised_one(written):
    line = message(written(having("train.method", "supervised")))
    assert "train.method = 'supervised': a line of ablations.trained, not the default run" in line


@pytest.mark.parametrize("line", ["train.workers=1", "train.checkpoint_steps=7", "supervised.labels=things", "tcl.tau=0.1"])
def test_a_line_that_changes_no_result_is_the_default_run(written, line):
    values = copy.deepcopy(VALUES)
    values["ablations"]["trained"] = [line]
    assert f"ablations.trained: {line}: the same run as the default run" in message(written(values))


def test_thresholds_are_of_benchmarks():
    with pytest.raises(params.ParamsError, match="evaluate.*thresholds of thigns: allowed are those of benchmarks, things, scenes"):
        params.load({"evaluate.thresholds": {"thigns": 0.1}}, PROJECT / "params.yaml")


def test_a_line_is_told_apart_by_the_methods_that_it_trains_by(written):
    lines = ["train.method=tcl", "train.method=tcl,mgca.k=0"]
    with pytest.raises(params.ParamsError, match=r"train.method=tcl,mgca.k=0: the same run as train.method=tcl"):
        params.load(path=written(with_lines(lines)))
    two = ["train.method=tcl,tcl.tau=0.1", "train.method=mgca+mixreorg", "train.method=mgca+mixreorg,mgca.k=0"]
    params.load(path=written(with_lines(["train.method=tcl", *two])))


def test_mixreorg_mixes_whole_batches():
    with pytest.raises(params.ParamsError, match=r"batch = 130: with mixreorg a multiple of mixreorg.images \* train.processes, 4"):
        params.load({"train.method": "mgca+mixreorg", "train.batch": 130}, PROJECT / "params.yaml")
    params.load({"train.batch": 130}, PROJECT / "params.yaml")


@pytest.mark.parametrize("method, key, value", [("mixreorg", "block", 0), ("mgca+mixreorg", "block", 2), ("tcl", "image_level", True)])
def test_what_runs_clip_in_each_step_needs_images(method, key, value):
    name = f"{method.removeprefix('mgca+')}.{key}"
    with pytest.raises(params.ParamsError, match=f"{name} = {value} encodes images in each step: set clip.cache_images to false"):
        params.load({"train.method": method, name: value}, PROJECT / "params.yaml")
    params.load({"train.method": method, name: value, "clip.cache_images": False}, PROJECT / "params.yaml")
    params.load({name: value}, PROJECT / "params.yaml")  # of a method that is not used


def test_learned_groups_are_those_of_groupvit():
    with pytest.raises(params.ParamsError, match="'learned-group' needs the groups that train.method = groupvit learns"):
        params.load({"segment.unit": "learned-group"}, PROJECT / "params.yaml")
    params.load({"segment.unit": "learned-group", "train.method": "groupvit"}, PROJECT / "params.yaml")


def test_the_default_run_has_no_learned_groups(written):
    values = having("segment.unit", "learned-group")
    values["train"]["method"] = "groupvit"
    assert "segment.unit = 'learned-group': in a line of ablations.trained" in message(written(values))
