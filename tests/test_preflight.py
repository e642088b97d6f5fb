"""What is refused before hours of work: values that do not fit the CLIP, the data or the machine."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import webdataset as wds

from ovseg import params, preflight, schema

ROOT = Path(__file__).parent.parent
RUNS = params.load_runs(ROOT / "params.yaml")
DEFAULT = RUNS[""]


def having(**sections):
    """The default run with other values: having(clip={"model": ...})."""
    whole = {"benchmarks": sections.pop("benchmarks")} if "benchmarks" in sections else {}
    found = {name: getattr(DEFAULT, name).model_copy(update=values) for name, values in sections.items()} | whole
    return {"": DEFAULT.model_copy(update=found)}


def line(runs):
    with pytest.raises(params.ParamsError) as caught:
        preflight.check(runs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("file", ["params.yaml", "presets/paper.yaml", "presets/small.yaml"])
def test_the_projects_own_values_pass(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    preflight.check(params.load_runs(ROOT / file))


VIT = {"model": "ViT-B-16-quickgelu", "pretrained": "openai", "image_size": 224}


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"clip": {"image_size": 120}}, "clip.image_size = 120: allowed are multiples of CLIP's patch, 16"),
        ({"segment": {"window": 250}}, "segment.window = 250: allowed are multiples of CLIP's patch, 16"),
        ({"clip": VIT | {"model": "ViT-L-14-quickgelu", "image_size": 252}}, "segment.window = 256: allowed are multiples"),
        ({"segment": {"meta_points": 33**2}}, "segment.meta_points = 1089: at most 1024"),
        ({"segment": {"groups": 1025}}, "segment.groups = 1025: at most 1024"),
        ({"train": {"method": "mixreorg"}, "mixreorg": {"block": 6}}, "mixreorg.block = 6: at most 5, CLIP's last block"),
        (
            {"train": {"method": "tcl"}, "tcl": {"image_level": True}, "clip": {"image_size": 160}},
            "clip.image_size = 160: with tcl.image_level 128, that of CLIP's pretraining",
        ),
        ({"train": {"batch": 10000}}, "train.batch = 10000: at most 5120, the number of pairs"),
        ({"clip": VIT | {"model": "ViT-B-16-quickgel"}}, "no such model; the nearest is ViT-B-16-quickgelu"),
        ({"clip": VIT | {"model": "RN50"}}, "clip.model = 'RN50': allowed are models whose image tower is"),
        ({"clip": VIT | {"model": "convnext_base"}}, "allowed are models"),
        ({"clip": VIT | {"model": "PE-Core-B-16"}}, "allowed are models"),
        ({"clip": VIT | {"model": "coca_ViT-B-32"}}, "allowed are models"),
        ({"clip": {"model": "local-dir:nowhere"}}, "nowhere/open_clip_config.json does not exist"),
        ({"clip": VIT | {"pretrained": "openaj"}}, "clip.pretrained = 'openaj': no such file, and no tag of ViT-B-16-quickgelu"),
        ({"clip": VIT | {"pretrained": "weights/vit.pt"}}, "no such file"),
        ({"clip": VIT | {"pretrained": None}}, "clip.pretrained = None: allowed are a tag"),
        ({"clip": {"pretrained": "openai"}}, "null goes with clip.model = 'local-dir:models/clip'"),
    ],
)
def test_what_does_not_fit_is_one_line(sections, message):
    assert message in line(having(**sections))


@pytest.mark.parametrize(
    "model, pretrained, message",
    [
        ("ViT-B-16", "openai", "clip.model = 'ViT-B-16' computes GELU, but the weights 'openai' were trained with QuickGELU"),
        ("ViT-B-16", "laion2b_s34b_b88k", ""),
        ("ViT-B-16-quickgelu", "openai", ""),
        ("ViT-B-16", "dfn2b", "take ViT-B-16-quickgelu"),
    ],
)
def test_weights_of_quickgelu_under_another_name_are_warned_of(capsys, model, pretrained, message):
    preflight.check_pretrained(DEFAULT.clip.model_copy(update={"model": model, "pretrained": pretrained}))
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == (1 if message else 0)


def test_a_line_of_the_ablations_is_named():
    runs = RUNS | {"train.batch=8192": having(train={"batch": 8192})[""]}
    assert line(runs) == "train.batch=8192: train.batch = 8192: at most 5120, the number of pairs"
    runs = RUNS | {"segment.meta_points=1600": having(segment={"meta_points": 1600})[""]}
    assert line(runs).startswith("segment.meta_points=1600: segment.meta_points = 1600: at most 1024")


def test_shards_and_benchmarks_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def said(**sections):
        with pytest.raises(params.ParamsError) as caught:
            preflight.check_files(having(**sections))
        return str(caught.value)

    preflight.check_files(RUNS)  # `prepare` makes what the default study needs
    assert said(data={"shards": "cc3m/{00000..00331}.tar"}).startswith("data.shards: ") and "cc3m" in said(data={"shards": "cc3m/*.tar"})
    voc = schema.Benchmark(layout="voc", folder="VOC2012")
    assert said(benchmarks={"voc": voc}).startswith("benchmark voc: VOC2012 does not exist; expected JPEGImages")
    optional = {"voc": voc.model_copy(update={"optional": True})}
    preflight.check_files(having(benchmarks=optional))
    mine = schema.Benchmark(folder="mine")
    (tmp_path / "mine/labels").mkdir(parents=True)
    assert "mine/images does not exist" in said(benchmarks=optional | {"mine": mine})
    (tmp_path / "mine/images").mkdir()
    (tmp_path / "mine/classes.txt").write_text("cat\nsofa\n")
    (tmp_path / "mine/images/a.png").write_bytes(b"")
    assert said(benchmarks={"mine": mine}) == "benchmark mine: no label map labels/a.png (mine)"
    (tmp_path / "mine/labels/a.png").write_bytes(b"")
    preflight.check_files(having(benchmarks={"mine": mine}))


def test_a_supervised_line_wants_label_maps_in_the_training_shards(tmp_path):
    with wds.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "k", "png": np.zeros((9, 9, 3), np.uint8), "txt": "a dog"})
    pairs = having(data={"shards": str(tmp_path / "a.tar")})
    preflight.check_files(pairs)
    pairs["train.method=supervised"] = pairs[""].model_copy(update={"train": DEFAULT.train.model_copy(update={"method": "supervised"})})
    with pytest.raises(params.ParamsError, match=r"train.method=supervised: it learns from label maps, but .*a\.tar hold no scenes\.png"):
        preflight.check_files(pairs)


def test_gpus_that_are_not_there_are_missed(monkeypatch):
    other = {"": DEFAULT.model_copy(update={"device": "cuda"})}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device = 'cuda': this machine has no GPU" in line(other)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "train.processes = 4: allowed are 1..2" in line(having(train={"processes": 4, "batch": 40}))


@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-B-32", "ViT-L-14-336", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384"])
def test_patches_are_those_of_the_model(model):
    described = open_clip.get_model_config(model)
    assert preflight.model_config(model) == described
    visual = described["vision_cfg"]
    assert preflight.patch_size(model) == visual.get("patch_size", int(model.split("-")[2]))


def test_a_folder_that_pretraining_wrote_is_known(tmp_path, monkeypatch):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {"patch_size": 32}}}))
    assert preflight.patch_size(f"local-dir:{tmp_path}") == 32
    monkeypatch.chdir(tmp_path)  # where there is no models/clip: `pretrain` makes it
    preflight.check({"": DEFAULT})


def test_the_command_says_it_in_one_line_without_torch(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    code = "import runpy, sys; runpy.run_module('ovseg.params', run_name='__main__'); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).returncode == 0
    (tmp_path / "params.yaml").write_text(text.replace("  image_size: 128", "  image_size: 130"))
    done = subprocess.run([sys.executable, "-m", "ovseg.params"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "clip.image_size = 130: allowed are multiples of CLIP's patch, 16\n"
