"""Presets are whole params.yaml files: in step with it, valid, the paper's or the default study's where they say so."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ovseg import params
from ovseg.study import report
from ovseg.values import LEVELS, METHODS

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
OF_THE_PAPER = [path for path in PRESETS if path.stem in ("paper", "small")]
FREE = ("benchmarks", "evaluate.thresholds")  # whose keys each file chooses


def values_of(path):
    return YAML(typ="safe").load(path.read_text())


VALUES, PAPER = values_of(ROOT / "params.yaml"), values_of(ROOT / "paper/tables.yaml")


def keys(values, above=""):
    """All keys of nested mappings in their order, as a.b.c, but those inside FREE."""
    found = []
    for name, value in values.items():
        key = f"{above}{name}"
        found += [key] + (keys(value, f"{key}.") if isinstance(value, dict) and key not in FREE else [])
    return found


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_keys_of_params_in_their_order_and_is_valid(path):
    assert keys(values_of(path)) == keys(VALUES)
    params.load(path=path)


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=lambda path: path.stem)
def test_benchmarks_with_background_have_thresholds(path):
    p = params.load(path=path)
    with_background = [name for name in p.benchmarks if name in PAPER["with_background"]["benchmarks"]]
    assert sorted(p.evaluate.thresholds) == sorted(with_background)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("section", ["scenes", "pretrain"])
def test_what_a_preset_does_not_use_stays_as_it_is(path, section):
    if (path.stem, section) != ("smoke", "scenes"):  # which renders fewer
        assert values_of(path)[section] == VALUES[section]  # a change of `pretrain` would retrain the compact CLIP


def test_presets_are_there():
    assert [path.stem for path in PRESETS] == ["methods", "mixing", "paper", "parts", "small", "smoke", "why"]


def test_learning_rates_are_tried_on_pictures_that_the_study_is_not_measured_on():
    tried, default = (params.load(path=path).model_dump() for path in (ROOT / "presets/methods.yaml", ROOT / "params.yaml"))
    measured = {benchmark["shards"] for benchmark in default.pop("benchmarks").values()}
    assert not measured & {benchmark["shards"] for benchmark in tried.pop("benchmarks").values()}
    lines = [params.parse_change(line) for line in tried.pop("ablations")["trained"]] + [{}]
    rates = {}
    for line in lines:
        rates.setdefault(line.get("train.method", "mgca"), set()).add(line.get("train.lr", default["train"]["lr"]))
    assert set(rates) == {*METHODS, "mgca+mixreorg"} and all(rate == {0.004, 0.008, 0.016} for rate in rates.values())
    default.pop("ablations")
    assert tried.pop("train") == default.pop("train") | {"seeds": 1} and tried == default


@pytest.mark.parametrize("name", ["why", "parts"])
def test_a_preset_is_the_default_study_with_other_ablations(name):
    why, default = (params.load(path=path).model_dump() for path in (ROOT / f"presets/{name}.yaml", ROOT / "params.yaml"))
    assert why["train"].pop("seeds") < default["train"].pop("seeds") and why.pop("ablations") != default.pop("ablations")
    assert why == default


def test_smoke_is_the_default_study_in_fewer_pairs_seeds_and_lines():
    smoke, default = (params.load(path=path).model_dump() for path in (ROOT / "presets/smoke.yaml", ROOT / "params.yaml"))
    for section, key in (("scenes", "pairs"), ("scenes", "pictures"), ("train", "seeds"), ("train", "batch")):
        assert smoke[section].pop(key) < default[section].pop(key)
    for kind in ("trained", "inferred", "untrained"):
        assert 0 < len(smoke["ablations"][kind]) < len(default["ablations"][kind])
    assert smoke.pop("ablations") != default.pop("ablations") and smoke == default


def test_mixing_is_the_default_study_by_mixreorg_on_images():
    mixing, default = (params.load(path=path).model_dump() for path in (ROOT / "presets/mixing.yaml", ROOT / "params.yaml"))
    default["clip"]["cache_images"], default["train"]["method"], default["segment"]["threshold"] = False, "mixreorg", 0.65
    assert "train.method=mixreorg,segment.threshold=0.65" in default.pop("ablations")["trained"]
    assert mixing["train"].pop("seeds") < default["train"].pop("seeds")
    blocks = [params.parse_change(line)["mixreorg.block"] for line in mixing.pop("ablations")["trained"]]
    assert blocks[0] == 0 and max(blocks) < default["pretrain"]["vision_layers"] - 1  # see the preset for the last block
    assert mixing == default


def test_the_papers_preset_holds_its_benchmarks_and_ablations():
    p = params.load(path=ROOT / "presets/paper.yaml")
    assert list(p.benchmarks) == PAPER["with_background"]["benchmarks"] + PAPER["without_background"]["benchmarks"]
    assert all(benchmark.layout == name and not benchmark.optional for name, benchmark in p.benchmarks.items())
    points = [row["points"] for row in PAPER["meta_points"] if row["points"] not in (report.PAPER_PIXELS, p.segment.meta_points)]
    assert p.ablations.inferred == [f"segment.meta_points={n}" for n in points]
    levels = [row["granularity"] for row in PAPER["granularity"] if row["granularity"] not in ("none", p.mgca.granularity)]
    assert p.ablations.trained[: len(levels)] == [f"mgca.granularity={level}" for level in levels]
    assert {"mgca.k=0", f"mgca.k={p.mgca.alpha}"} <= set(p.ablations.trained)  # the ends that the paper names


def test_the_papers_preset_holds_its_recipe():
    p = params.load(path=ROOT / "presets/paper.yaml")
    assert (p.mgca.levels, p.mgca.alpha, p.mgca.beta, p.mgca.k, p.mgca.tau) == (LEVELS, 0.4, 0.05, 0.06, 0.07)
    assert (p.train.epochs, p.train.warmup_epochs, p.train.batch, p.train.lr, p.train.weight_decay) == (15, 2, 1024, 1e-4, 0.05)
    assert (p.train.optimizer, p.train.processes) == ("adam", 4)
    assert (p.clip.model, p.clip.pretrained, p.clip.dense, p.clip.image_size) == ("ViT-B-16-quickgelu", "openai", "maskclip", 224)
    s = p.segment
    assert (s.unit, s.meta_points, s.short_side, s.window, s.stride, len(s.templates)) == ("meta-point", 36, 448, 448, 224, 9)
    assert s.scale == pytest.approx(1 / p.mgca.tau)


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=lambda path: path.stem)
def test_a_preset_says_how_much_is_trained(path):
    p = params.load(path=path)
    assert p.train.seeds == 1 and f"{1 + len(p.ablations.trained)} training runs" in path.read_text()
