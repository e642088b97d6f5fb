"""The command `ovseg`: what it writes, what it refuses before work, its exit codes. With a tiny model of random weights."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tiny import ROOT, TINY, P, changed, picture, save, write_benchmark

from ovseg import Segmenter, cli
from ovseg.segmentation import hub
from ovseg.study import figures
from ovseg.world import pretraining

NAMES = ["cat", "sofa", "tall tree"]
CLASSES = ["--classes", "cat, sofa,tall tree"]


@pytest.fixture
def here(clip, decoder, tmp_path, monkeypatch):
    """A working directory with a trained model, models/default, and its CLIP, models/clip."""
    monkeypatch.chdir(tmp_path)
    pretraining.save_clip(clip.clip, TINY, "models/clip")
    Segmenter(clip, decoder, changed()).save_settings("models/default", P.clip.model_copy(update={"model": "local-dir:models/clip"}))
    decoder.save("models/default/seeds/0")
    return tmp_path


def photo(path, height=33, width=40, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed)).save(path, **options)
    return path


def run(exit_code, *arguments):
    """Run the command in this process, check its exit code, and return its result (stdout, stderr)."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def refused(*arguments):
    """The line on stderr of a command that is refused before work."""
    (line,) = run(2, *arguments).stderr.splitlines()
    return line.removeprefix("Error: ")


def test_each_picture_gets_an_overlay_a_label_map_and_areas(here):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo(here / "a.png"), photo(here / "photos/b.JPG", 4000, 600, seed=1, exif=exif), photo(here / "photos/.hidden.png")
    photo(here / "photos/caf\udce9.jfif", format="JPEG"), (here / "photos/d.HEIC").touch()  # a name in Latin-1
    said = "2 left out, hidden or not read by Pillow: photos/.hidden.png, photos/d.HEIC\n3 of 3 segmented, in out\n"
    assert run(0, "segment", "a.png", "photos", "*.png", *CLASSES).stderr == said
    stems = ("a", "b", "caf\udce9")
    assert sorted(os.listdir("out")) == [f"{stem}.{ending}" for stem in stems for ending in ("json", "labels.png", "overlay.png")]
    for stem, path, width, height in (("a", "a.png", 40, 33), ("b", "photos/b.JPG", 4000, 600)):
        segmentation = Segmenter.load("models/default", "cpu").segment(Image.open(path), NAMES)
        labels = Image.open(f"out/{stem}.labels.png")
        assert labels.mode == "P" and np.array_equal(np.asarray(labels), segmentation.labels)
        assert np.array_equal(np.reshape(labels.getpalette()[:9], (3, 3)), figures.palette(NAMES))
        assert max(Image.open(f"out/{stem}.overlay.png").size) < 2000
        about = json.loads((here / f"out/{stem}.json").read_text())
        percent = {name: 100 * np.mean(segmentation.labels == index) for index, name in enumerate(NAMES)}
        assert list(about["percent"]) == NAMES and about.pop("percent") == pytest.approx(percent, abs=1e-3)
        expected = {"picture": path, "threshold": None, "others": [], "model": "models/default", "seed": 0}
        assert about == expected | {"width": width, "height": height}


def test_background_threshold_and_others(here):
    photo(here / "a.png")
    run(0, "segment", "a.png", "--classes", "cat", "--background", "--threshold", "0.04", "--others", "sofa, tall tree")
    segmentation = Segmenter.load("models/default", "cpu").segment(Image.open("a.png"), ["cat"], True, 0.04, ["sofa", "tall tree"])
    about = json.loads((here / "out/a.json").read_text())
    assert np.array_equal(np.asarray(Image.open("out/a.labels.png")), segmentation.labels)
    assert (list(about["percent"]), about["others"], about["threshold"]) == (["background", "cat"], ["sofa", "tall tree"], 0.04)
    run(0, "segment", "a.png", "--classes", "cat,sky", "--others", "default", "--force")
    assert {"sky", "road"} & set(json.loads((here / "out/a.json").read_text())["others"]) == {"road"}


def test_refined_label_maps(here):
    photo(here / "a.png")
    run(0, "segment", "a.png", *CLASSES, "--refine", "pamr")
    expected = Segmenter.load("models/default", "cpu").with_unit("pixel", refine="pamr").segment(Image.open("a.png"), NAMES)
    assert np.array_equal(np.asarray(Image.open("out/a.labels.png")), expected.labels)
    assert json.loads((here / "out/a.json").read_text())["refine"] == "pamr"


def test_a_failed_picture_is_one_line_and_the_others_go_on(here):
    (here / "broken.jpg").write_bytes(photo(here / "a.jpg").read_bytes()[:-100])
    (here / "text.jpg").write_text("no picture")
    photo(here / "zz.png")
    lines = run(1, "segment", "*.*", *CLASSES).stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["broken.jpg", "text.jpg", "2 of 4 segmented, in out"]
    assert {name.split(".")[0] for name in os.listdir("out")} == {"a", "zz"}


def test_a_killed_run_is_continued_with_the_pictures_whose_files_are_not_all_there(here):
    for name in "abc":
        photo(here / f"photos/{name}.png")
    run(0, "segment", "photos/b.png", *CLASSES)
    save(here / "out/c.labels.png", b"half")
    kept = {path: path.stat().st_mtime_ns for path in (here / "out").glob("b.*")}
    assert run(0, "segment", "photos", *CLASSES, "--continue").stderr == "3 of 3 segmented, in out\n" and len(os.listdir("out")) == 9
    assert kept == {path: path.stat().st_mtime_ns for path in kept} and len(kept) == 3
    assert np.asarray(Image.open("out/c.labels.png")).shape == np.asarray(Image.open("photos/c.png")).shape[:2]


def test_files_are_replaced_only_with_force_and_never_a_picture(here):
    photo(here / "a.png"), photo(here / "other/a.jpg"), photo(here / "pair/b.png"), photo(here / "pair/b.overlay.png")
    save(here / "out/a.json", "mine")
    assert refused("segment", "a.png", *CLASSES) == "out/a.json exists already; --force replaces it"
    assert "a.png and other/a.jpg would overwrite each other" in refused("segment", "a.png", "other", *CLASSES, "--force")
    assert "pair/b.overlay.png is one of the pictures" in refused("segment", "pair", *CLASSES, "-o", "pair", "--force")
    assert (here / "out/a.json").read_text() == "mine" and (len(os.listdir("out")), len(os.listdir("pair"))) == (1, 2)
    run(0, "segment", "a.png", *CLASSES, "--force")
    assert json.loads((here / "out/a.json").read_text())["width"] == 40


def test_clips_without_training_are_segmented_apart_and_compared(here):
    photo(here / "a.png")
    run(0, "segment", "a.png", *CLASSES, "--clip", "models/clip", "--clip", f"local-dir:{here}/models/clip", "--dense", "pearl")
    (one, other), labels = sorted(path for path in (here / "out").iterdir() if path.is_dir()), {}
    for folder in (one, other):
        about = json.loads((folder / "a.json").read_text())
        assert about["dense"] == "pearl" and list(about["percent"]) == NAMES and "model" not in about
        labels[folder] = np.asarray(Image.open(folder / "a.labels.png"))
    expected = Segmenter.untrained("local-dir:models/clip", dense="pearl", device="cpu").segment(Image.open("a.png"), NAMES).labels
    assert np.array_equal(labels[one], expected) and np.array_equal(labels[other], expected) and np.ptp(expected)
    width, height = Image.open("out/a.comparison.png").size
    assert width > 1.5 * height  # two beside each other
    assert refused("segment", "a.png", *CLASSES, "--clip", "models/clip", "--clip", "models/clip/").startswith("--clip: each must")
    benchmark(here / "mine", ["cat", "sofa", "sky"])
    printed = run(0, "evaluate", "mine", "--clip", "models/clip", "--json", "mine.json").stdout
    assert printed.startswith("2 pictures, models/clip, sclip, threshold None; IoU")
    assert json.loads((here / "mine.json").read_text())["clip"] == "models/clip"
    printed = run(0, "check-data", "mine", "--clip", "models/clip").stdout
    assert printed.startswith("CLIP models/clip: trained at 32 px, patch 8, d = 16, windows of 64 px\n\nbenchmark mine: 2")


def benchmark(folder, names):
    maps = [np.random.default_rng(index).integers(0, 3, size) for index, size in enumerate([(32, 32), (40, 70)])]
    maps[0][:3] = maps[1][:3] = 255
    write_benchmark(folder, maps, names)


@pytest.mark.parametrize("names, threshold", [(["background", "cat", "sofa"], 0.55), (["cat; dog", "sofa", "tall tree", "sky"], None)])
def test_iou_is_that_of_all_pixels(here, names, threshold):
    benchmark(here / "mine", names)
    segmenter, background = Segmenter.load("models/default", "cpu"), names[0] == "background"
    options = ["--threshold", threshold] if background else []
    head, *lines = run(0, "evaluate", "mine", "--json", "results/mine.json", *options).stdout.splitlines()
    matrix = np.zeros((len(names), len(names)))  # pixels by true and by predicted class
    for index in range(2):
        labels = np.asarray(Image.open(f"mine/labels/{index}.png"))
        predicted = segmenter.segment(Image.open(f"mine/images/{index}.png"), names[background:], background, threshold).labels
        np.add.at(matrix, (labels[labels < 255], predicted[labels < 255]), 1)
    iou = 100 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    written = json.loads((here / "results/mine.json").read_text())
    assert [*written.pop("iou").values(), written.pop("miou")] == pytest.approx([*iou, np.mean(iou)], abs=0.3)
    names = [name.split(";")[0] for name in names]
    about = {"benchmark": "mine", "classes": None, "model": "models/default", "seed": 0}
    about |= {"pictures": 2, "threshold": threshold, "unit": "pixel"}
    printed = {name: float(value) for name, value in (line.rsplit(maxsplit=1) for line in lines)}
    assert head == f"2 pictures, models/default, seed 0, threshold {threshold}; IoU in percent:" and written == about
    assert printed == pytest.approx(dict(zip([*names, "mIoU"], [*iou, np.mean(iou)], strict=True)), abs=0.3)


def test_another_list_replaces_classes_txt(here):
    benchmark(here / "plain", ["background", "cat", "sofa"]), benchmark(here / "rich", ["background", "cat; kitten", "sofa; couch"])
    rich, other, plain = (run(0, "evaluate", *words.split()).stdout for words in ("rich", "plain --classes rich/classes.txt", "plain"))
    assert rich == other != plain


WRONG = {  # a command: what its error says
    "segment": "Missing argument 'PICTURES...'",
    "segment absent.png --classes a,b": "absent.png: no pictures found",
    "segment a.png --classes a,b --threshold 0.5": "--threshold 0.5: must be between 0 and 1, and requires --background",
    "segment a.png --classes a,b --background --threshold nan": "--threshold nan: must be between 0 and 1",
    "segment a.png --classes a,b --background --threshold 1.5": "1.5 is not in the range",
    "segment a.png --classes a": "at least two classes, or one with background=True or with others",
    f"segment a.png --classes {','.join(map(str, range(256)))}": "256 names; a label map of one byte per pixel holds 255",
    "segment a.png --classes a,b --model absent": "absent cannot be loaded: absent holds no segmenter.json",
    "segment a.png --classes a,b --seed 7": "models/default cannot be loaded: ",
    "segment a.png --classes a,b --seed 1": "models/default cannot be loaded: ",
    "segment a.png --classes a,b --dense pearl": "--dense needs --clip",
    "segment a.png --classes a,b --clip models/clip --model models/default": "excludes --model and --seed",
    "segment a.png --classes a,b --clip vit-b-16-quickgel/openai": "open_clip_config.json; the nearest are ViT-B-16-quickgelu, ViT",
    "check-data --clip=": "--clip is empty",
    "segment a.png --classes a,b --clip models": "local-dir:models: model must be a model of open_clip, or local-dir:FOLDER or hf-hub:",
    "check-data --clip ViT-B-16/opnai": "ViT-B-16/opnai: pretrained must be the path of a checkpoint, or a tag of ViT-B-16: openai, ",
    "evaluate mine --threshold 0.5": "a first class named 'background'; here it is 'cat'",
    "evaluate mine --classes more.txt": "more.txt holds 4 classes, mine/classes.txt 3: must be the same classes",
    "evaluate mine --classes absent.txt": "absent.txt does not exist",
    "evaluate mine --json a.png": "a.png exists already; --force replaces it",
    "check-data": "no params.yaml",
    "check-data mine absent": "absent does not exist",
    "models --folder absent": "absent: no trained models here",
    "publish models/default out --private": "--private needs --push",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_usage_is_refused_before_work_in_one_line(here, command):
    photo(here / "a.png"), benchmark(here / "mine", ["cat", "sofa", "sky"])
    save(here / "models/default/seeds/1/decoder.safetensors", b"no weights"), save(here / "more.txt", "cat\nsofa\nsky\nsea\n")
    assert WRONG[command] in refused(*command.split()) and not (here / "out").exists()


def test_invalid_labels_have_exit_code_1_and_check_data_reads_params(here):
    benchmark(here / "mine", ["cat", "sofa"]), benchmark(here / "other", ["cat", "sofa", "sky"])
    assert "benchmark other: 2 of 2 pictures, 3 classes" in run(0, "check-data", "other").stdout
    assert "warning: ids without a class: 2" in run(1, "check-data", "other", "mine").stdout
    assert "label map 0 holds 2" in run(1, "evaluate", "mine").stderr.splitlines()[-1]
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["benchmarks"] = {"lost": {"folder": "lost", "calibration": "other"}, "voc": {"layout": "voc", "folder": "voc", "optional": True}}
    values["evaluate"]["thresholds"], values["supervised"]["labels"], values["ablations"]["trained"] = {}, None, []
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    pairs, lost, calibration, voc = run(1, "check-data").stdout.strip().split("\n\n")
    assert "warning: no shards at" in pairs and "`dvc repro scenes`" in pairs and "lost, calibration: 2 of 2" in calibration
    assert "warning: benchmark lost: lost does not exist" in lost and "note: skipped, because it is optional: benchmark voc" in voc


def test_models_are_listed_with_their_results_the_best_first(here):
    for name, miou in {"low": 40.04, "mgca.k=1": 61.26, "unknown": None}.items():
        shutil.copytree("models/default", f"mine/{name}")
        if miou:  # the models' own unit is pixel
            (here / f"mine/{name}/result.json").write_text(json.dumps({"miou": {"street": {"meta-point": 99.0, "pixel": miou}}}))
    rows = [" ".join(line.split()) for line in run(0, "models", "--folder", "mine").stdout.splitlines()]
    listed = [f"mine/{name} 1 local-dir:../clip, maskclip {miou}" for name, miou in (("mgca.k=1", 61.3), ("low", "40.0"), ("unknown", "-"))]
    assert rows == ["model seeds CLIP street", *listed]
    (here / "mine/low/segmenter.json").write_text("{}")
    assert refused("models", "--folder", "mine").startswith("mine/low: ")


def test_publish_exports_once_and_uploads_on_request(here, monkeypatch):
    written, pushed = [], []
    monkeypatch.setattr(hub, "write_model", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(hub, "push", lambda *arguments: pushed.append(arguments) or "URL")
    assert run(0, "publish", "models/default", "out").stdout == "out\n" and not pushed
    save(here / "out/README.md", "")
    save(here / "out/segmenter.json", "{}")
    assert run(0, "publish", "models/default", "out", "--push", "me/model", "--private").stdout == "out\nURL\n"
    assert written == [("models/default", "out", None)] and pushed == [("out", "me/model", True)]
    monkeypatch.setattr(hub, "push", lambda *_: 1 / 0)  # any error of the network
    assert "out was not uploaded to me/model: " in run(1, "publish", "models/default", "out", "--push", "me/model").stderr


def test_help_imports_nothing_slow():
    code = "import sys; from ovseg import cli\ntry: cli.main(['segment', '--help'])\nfinally: print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--classes" in printed and not {"torch", "numpy", "matplotlib"} & set(printed.splitlines()[-1].split())
