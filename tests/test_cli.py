"""The command `ovseg`: what it writes, what it refuses before work, its exit codes. With a tiny model of random weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
import yaml
from PIL import Image
from tiny import TINY, P, changed, picture

from ovseg import Segmenter, cli
from ovseg.study import batch, figures, pictures
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["--classes", "cat, sofa,tall tree"]


@pytest.fixture(scope="module")
def model(clip, decoder, tmp_path_factory):
    """A trained model's folder, models/mgca, with its CLIP in models/clip."""
    folder = tmp_path_factory.mktemp("project") / "models"
    pretraining.save_clip(clip.clip, TINY, folder / "clip")
    settings = P.clip.model_copy(update={"model": f"local-dir:{folder / 'clip'}"})
    Segmenter(clip, decoder, changed()).save_settings(folder / "mgca", settings)
    decoder.save(folder / "mgca/seeds/0")
    return folder / "mgca"


@pytest.fixture
def here(tmp_path, monkeypatch, model):
    """An empty working directory, in which the model is the default one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(model.parent)
    return tmp_path


def save(path, height=33, width=40, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, seed)).save(path, **options)
    return path


def ovseg(*arguments):
    """The exit code of the command in this process."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code or 0


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what is written


def test_of_each_picture_an_overlay_a_label_map_and_the_areas(here, model):
    save(here / "a.png"), save(here / "photos/b.JPG", 60, 20, seed=1, format="jpeg")
    assert ovseg("segment", "a.png", "photos", *CLASSES) == 0
    assert files(here / "out") == [f"{stem}.{ending}" for stem in "ab" for ending in ("json", "labels.png", "overlay.png")]
    for stem, path in {"a": "a.png", "b": "photos/b.JPG"}.items():
        found = Segmenter.load(model, "cpu").segment(Image.open(path), ["cat", "sofa", "tall tree"])
        with Image.open(f"out/{stem}.labels.png") as labels:
            assert labels.mode == "P" and np.array_equal(np.asarray(labels), found.labels)
            assert np.array_equal(np.reshape(labels.getpalette()[:9], (3, 3)), figures.palette(found.names))
        about = json.loads((here / f"out/{stem}.json").read_text())
        height, width = found.labels.shape
        assert (about["picture"], about["width"], about["height"], about["threshold"]) == (path, width, height, None)
        assert (about["model"], about["seed"], about["others"]) == ("models/mgca", 0, [])
        expected = {name: 100 * np.mean(found.labels == index) for index, name in enumerate(found.names)}
        assert about["percent"] == pytest.approx(expected, abs=1e-3) and list(about["percent"]) == list(expected)


def test_one_class_with_background(here, model):
    save(here / "a.png")
    assert ovseg("segment", "a.png", "--classes", "cat", "--background", "--threshold", "0.04") == 0
    found = Segmenter.load(model, "cpu").segment(Image.open("a.png"), ["cat"], background=True, threshold=0.04)
    about = json.loads((here / "out/a.json").read_text())
    assert np.array_equal(np.asarray(Image.open("out/a.labels.png")), found.labels) and 0 < found.labels.mean() < 1
    assert about["others"] == list(found.others) and about["threshold"] == 0.04 and list(about["percent"]) == ["background", "cat"]


def test_others_are_given_or_the_common_list(here):
    save(here / "a.png")
    assert ovseg("segment", "a.png", "--classes", "cat,sky", "--others", "default", "-o", "common") == 0
    assert ovseg("segment", "a.png", "--classes", "cat", "--others", "sofa, tall tree", "-o", "given") == 0
    common, given = (json.loads((here / out / "a.json").read_text()) for out in ("common", "given"))
    assert "sky" not in common["others"] and "road" in common["others"] and common["threshold"] is None
    assert given["others"] == ["sofa", "tall tree"] and list(given["percent"]) == ["background", "cat"]


def test_pictures_of_any_kind(here):
    colours, grey = Image.fromarray(picture(33, 40)), Image.fromarray(picture(33, 40)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    colours.transpose(Image.Transpose.ROTATE_90).save(here / "turned.png", exif=exif)
    colours.save(here / "upright.png"), colours.convert("RGBA").save(here / "rgba.png"), grey.save(here / "grey.png")
    colours.save(here / "animated.png", save_all=True, append_images=[Image.new("RGB", (40, 33))])
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(here / "deep.png")
    colours.convert("CMYK").save(here / "cmyk.jpg"), colours.save(here / "animated2.gif", save_all=True, append_images=[colours.rotate(90)])
    save(here / "line.png", 2, 300), save(here / "point.png", 1, 1)
    assert ovseg("segment", ".", *CLASSES) == 0
    labels = {path.name.split(".")[0]: np.asarray(Image.open(path)) for path in (here / "out").glob("*.labels.png")}
    assert len(labels) == 10 and labels["line"].shape == (2, 300) and labels["point"].shape == (1, 1)
    assert labels["cmyk"].shape == labels["animated2"].shape == (33, 40)
    for form, of in {"turned": "upright", "rgba": "upright", "animated": "upright", "deep": "grey"}.items():
        assert np.array_equal(labels[form], labels[of]), form


def test_what_is_no_picture_gets_a_line_and_the_others_go_on(here, capsys):
    whole = save(here / "a.jpg").read_bytes()
    (here / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (here / "text.jpg").write_text("no picture")
    (here / "z.png").write_bytes(b"")
    Image.new("1", (20_000, 5_001)).save(here / "large.png")
    save(here / "zz.png")
    assert ovseg("segment", "*.*", *CLASSES) == 1
    lines = capsys.readouterr().err.splitlines()
    expected = [
        "broken.jpg: ",
        "large.png: more than 100 million pixels",
        "text.jpg: not a picture",
        "z.png: not a picture",
    ]
    assert len(lines) == 5 and all(line.startswith(start) for line, start in zip(lines, expected, strict=False))
    assert lines[-1] == "2 of 6 segmented, in out"
    assert {name.split(".")[0] for name in files(here / "out")} == {"a", "zz"}


def test_a_large_picture_is_drawn_smaller_and_labelled_in_full(here):
    Image.fromarray(picture(4000, 600)).save(here / "a.png")
    assert ovseg("segment", "a.png", *CLASSES) == 0
    assert Image.open("out/a.labels.png").size == (600, 4000) and max(Image.open("out/a.overlay.png").size) < 2000


def test_the_drawing_names_regions_and_has_a_legend_with_areas(model):
    image = Image.fromarray(picture(60, 60))
    labels = np.zeros((60, 60), np.int64)
    labels[:, 40:], labels[0, 0] = 1, 2
    segmenter = Segmenter.load(model, "cpu").segment(image, ["cat", "a $5 note", "sofa $"])
    figure = pictures.draw_overlay(image, type(segmenter)(labels, segmenter.names, segmenter.grid))
    assert {text.get_text() for text in figure.axes[0].texts} == {"cat", r"a \$5 note"}
    assert [text.get_text() for text in figure.legends[0].texts] == ["cat 66.6%", r"a \$5 note 33.3%", r"sofa \$ 0.0%"]
    figure.canvas.draw()


# ---- what is refused before work


def refused(capsys, *arguments):
    """The line of a call that is refused with code 2."""
    assert ovseg(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def no_work(monkeypatch):
    """No model may be loaded."""
    monkeypatch.setattr(Segmenter, "load", lambda *_: pytest.fail("a model was loaded"))


def test_nothing_is_overwritten_without_force(here, capsys, no_work):
    save(here / "a.png"), save(here / "b.png")
    (here / "out").mkdir()
    (here / "out/b.json").write_text("mine")
    assert refused(capsys, "segment", "a.png", "b.png", *CLASSES) == "ovseg: out/b.json exists already; --force replaces what is there"
    (here / "out/a.labels.png").write_text("mine")
    assert "out/a.labels.png exists already, and 1 more; --force" in refused(capsys, "segment", "a.png", "b.png", *CLASSES)
    assert files(here / "out") == ["a.labels.png", "b.json"] and (here / "out/b.json").read_text() == "mine"


def test_force_replaces(here):
    save(here / "a.png")
    (here / "out").mkdir()
    (here / "out/a.json").write_text("mine")
    assert ovseg("segment", "a.png", *CLASSES, "--force") == 0
    assert json.loads((here / "out/a.json").read_text())["width"] == 40


def test_two_pictures_of_one_name_are_refused_and_one_named_twice_is_not(here, capsys, no_work):
    first, second = save(here / "one/a.png"), save(here / "two/a.jpg")
    assert "one/a.png and two/a.jpg would both be written to out/a.json" in refused(capsys, "segment", "one", "two", *CLASSES)
    assert not (here / "out").exists()
    assert batch.gather(["one", first, "*/a.png", second]) == [Path("one/a.png"), second]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_picture_is_never_written_over(here, capsys, no_work, force):
    save(here / "a.png"), save(here / "a.overlay.png")
    assert "a.overlay.png would be written, and is one of the pictures" in refused(capsys, "segment", ".", *CLASSES, "-o", ".", *force)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent.png"], "absent.png does not exist"),
        (["absent/*.png"], "absent/*.png: no file matches"),
        (["empty"], "empty: no pictures in this folder"),
        (["a.png", "--out", "a.png"], "a.png is a file"),
        (["a.png", "--threshold", "0.5"], "--threshold goes with --background"),
        (["a.png", "--background", "--threshold", "1.5"], "1.5 is not in the range"),
        (["a.png", "--background", "--threshold", "nan"], "nan is not in the range"),
        (["a.png", "--seed", "-1"], "-1 is not in the range"),
        (["a.png", "--classes", "cat"], "at least two classes, or one with background=True or with others"),
        (["a.png", "--classes", "cat,,sofa"], "non-empty"),
        (["a.png", "--classes", "cat,cat"], "each class once"),
        (["a.png", "--classes", ",".join(map(str, range(257)))], "257 classes: at most 256"),
        (["a.png", "--classes", ",".join(map(str, range(256))), "--background"], "257 classes: at most 256"),
        (["a.png", "--others", "cat"], "'cat' is one of the names"),
        (["a.png", "--size", "3"], "No such option '--size'"),
        ([], "Missing argument 'PICTURES...'"),
    ],
)
def test_wrong_usage_is_one_line(here, capsys, no_work, arguments, message):
    save(here / "a.png"), (here / "empty").mkdir()
    assert message in refused(capsys, "segment", *CLASSES, *arguments) and files(here) == ["a.png", "empty", "models"]


def test_a_model_that_is_not_there_or_broken_is_one_line(here, capsys, clip):
    save(here / "a.png")
    assert "absent holds no segmenter.json" in refused(capsys, "segment", "a.png", *CLASSES, "--model", "absent")
    assert "seeds/7" in refused(capsys, "segment", "a.png", *CLASSES, "--seed", "7")
    (here / "broken/seeds/0").mkdir(parents=True)
    for text in ("{}", "no JSON", '{"clip": {"model": "ViT"}}'):
        (here / "broken/segmenter.json").write_text(text)
        assert refused(capsys, "segment", "a.png", *CLASSES, "--model", "broken")
    settings = json.loads((here / "models/mgca/segmenter.json").read_text())
    settings["clip"]["model"] = f"local-dir:{here / 'models/clip'}"
    (here / "broken/segmenter.json").write_text(json.dumps(settings))
    (here / "broken/seeds/0/decoder.safetensors").write_bytes(b"no weights")
    assert "broken cannot be loaded" in refused(capsys, "segment", "a.png", *CLASSES, "--model", "broken")
    assert not (here / "out").exists()


# ---- evaluate


def benchmark(folder, names):
    for index, (height, width) in enumerate([(32, 32), (40, 70)]):
        save(folder / f"images/{index}.png", height, width, index)
        (folder / "labels").mkdir(exist_ok=True)
        labels = np.random.default_rng(index).integers(0, 3, (height, width), dtype=np.uint8)
        labels[:3] = 255
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
    (folder / "classes.txt").write_text("\n".join(names))
    return folder


@pytest.mark.parametrize("names, threshold", [(["background", "cat", "sofa"], 0.55), (["cat", "sofa", "tall tree", "sky"], None)])
def test_iou_is_that_of_all_pixels(here, model, capsys, names, threshold):
    benchmark(here / "mine", names)
    option = ["--threshold", str(threshold)] if threshold else []
    assert ovseg("evaluate", "mine", "--json", "results/mine.json", *option) == 0
    segmenter, background = Segmenter.load(model, "cpu"), names[0] == "background"
    truth, found = [], []
    for index in range(2):
        labels = np.asarray(Image.open(f"mine/labels/{index}.png"))
        result = segmenter.segment(Image.open(f"mine/images/{index}.png"), names[background:], background, threshold)
        truth.append(labels[labels < 255]), found.append(result.labels[labels < 255])
    truth, found = np.concatenate(truth), np.concatenate(found)
    masks = [(truth == index, found == index) for index in range(len(names))]
    iou = [100 * (true & predicted).sum() / (true | predicted).sum() for true, predicted in masks]
    written = json.loads((here / "results/mine.json").read_text())
    assert list(written["iou"]) == names and [*written["iou"].values()] == pytest.approx(iou, abs=0.3)
    assert written["miou"] == pytest.approx(np.mean(iou), abs=0.3)
    assert (written["pictures"], written["threshold"], written["unit"], written["model"]) == (2, threshold, "pixel", "models/mgca")
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert "2 pictures" in head and (f"threshold {threshold}" in head) == background
    assert [line.rsplit(maxsplit=1) for line in (*lines, last)] == [
        *([name, f"{value:.1f}"] for name, value in written["iou"].items()),
        ["mIoU", f"{written['miou']:.1f}"],
    ]


def test_what_cannot_be_evaluated_is_one_line(here, capsys):
    assert "absent does not exist" in refused(capsys, "evaluate", "absent")
    folder = benchmark(here / "mine", ["cat", "sofa", "sky"])
    assert "mine has no background; its first class is cat" in refused(capsys, "evaluate", "mine", "--threshold", "0.5")
    (here / "there.json").write_text("mine")
    assert "there.json exists already" in refused(capsys, "evaluate", "mine", "--json", "there.json")
    assert "mine is a folder" in refused(capsys, "evaluate", "mine", "--json", "mine", "--force")
    (folder / "classes.txt").write_text("cat\nsofa")  # labels hold 2
    assert ovseg("evaluate", "mine") == 1
    assert "label map 0 holds 2; allowed are 0..1 and 255" in capsys.readouterr().err.splitlines()[-1]


# ---- check-data


def test_data_are_counted_and_what_looks_wrong_has_exit_code_1(here, capsys):
    folder = benchmark(here / "mine", ["cat", "sofa", "sky"])
    assert ovseg("check-data", "mine") == 0
    out = capsys.readouterr().out
    assert "benchmark mine: 2 of 2 pictures, 3 classes" in out and "sofa" in out and "(ignored)" in out and "warning" not in out
    (folder / "classes.txt").write_text("cat\nsofa")
    assert ovseg("check-data", "mine", "--model", "models/mgca") == 1
    assert "\n  warning: id 2 belongs to no class: " in capsys.readouterr().out


def test_a_studys_data_are_those_of_params_yaml(here, capsys):
    assert "no params.yaml" in refused(capsys, "check-data")
    values = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    assert ovseg("check-data") == 1
    assert "train-*.tar: expected webdataset tars; `dvc repro prepare` renders them" in capsys.readouterr().out
    with wds.TarWriter(str(here / "pairs.tar")) as tar:
        for index, text in enumerate(["a dog", "a red car"]):
            tar.write({"__key__": f"k{index}", "png": picture(10, 12, index), "txt": text})
    benchmark(here / "mine", ["cat", "sofa", "sky"])
    values["data"]["shards"] = "pairs.tar"
    values["benchmarks"] = {
        "mine": {"folder": "mine"},
        "lost": {"folder": "lost"},
        "voc": {"layout": "voc", "folder": "voc", "optional": True},
    }
    values["evaluate"]["thresholds"], values["supervised"]["labels"], values["ablations"]["trained"] = {}, None, []
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    assert ovseg("check-data") == 1
    out = capsys.readouterr().out
    assert "pairs: 2 looked at, in 1 of 1 shards" in out and "benchmark mine: 2 of 2" in out
    assert "benchmark voc: left out, because it is optional and voc" in out
    assert out.count("warning: ") == 1 and "benchmark lost: cannot be opened\n  warning: lost does not exist" in out


# ---- models


def test_models_are_listed_with_their_results_the_best_first(here, model, capsys):
    for name in ("low", "trained/high=1", "unknown"):
        settings = json.loads((model / "segmenter.json").read_text())
        settings["clip"] |= {"model": "ViT-B-16", "pretrained": "openai", "dense": "sclip"}
        for seed in (0, 1):
            (here / f"mine/{name}/seeds/{seed}").mkdir(parents=True)
            (here / f"mine/{name}/seeds/{seed}/decoder.safetensors").touch()
        (here / f"mine/{name}/segmenter.json").write_text(json.dumps(settings))
    for name, miou in {"low": 40.04, "trained/high=1": 61.26}.items():
        path = here / f"results/runs/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"miou": {"street": {"meta-point": 99, "pixel": miou}}}))  # the models' own unit is pixel
    assert ovseg("models", "--folder", "mine") == 0
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    clip = "ViT-B-16 (openai), sclip"
    assert rows == [
        ["model", "street", "seeds", "CLIP"],
        ["mine/trained/high=1", "61.3", "2", clip],
        ["mine/low", "40.0", "2", clip],
        ["mine/unknown", "-", "2", clip],
    ]
    assert ovseg("models") == 0 and "models/clip, maskclip" in capsys.readouterr().out


def test_no_models_or_broken_ones_are_one_line(here, capsys):
    assert "absent: no trained models here" in refused(capsys, "models", "--folder", "absent")
    (here / "mine/one").mkdir(parents=True)
    for text in ("{}", "no JSON"):
        (here / "mine/one/segmenter.json").write_text(text)
        assert "mine/one" in refused(capsys, "models", "--folder", "mine")


# ---- the program


def test_help_imports_nothing_slow_and_interrupts_are_one_line(here, monkeypatch, capsys):
    code = "import sys; from ovseg import cli\ntry: cli.main(['segment', '--help'])\nfinally: print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--classes" in printed and not {"torch", "numpy", "matplotlib"} & set(printed.splitlines()[-1].split())
    save(here / "a.png")
    monkeypatch.setattr(Segmenter, "load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ovseg("segment", "a.png", *CLASSES) == 130 and capsys.readouterr().err.strip() == "ovseg: interrupted"


def test_the_module_is_the_command(here):
    done = subprocess.run([sys.executable, "-m", "ovseg.cli", "models", "--folder", "absent"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
