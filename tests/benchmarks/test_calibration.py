"""The background's threshold: the sweep by hand and against evaluations, the images it may be chosen on, the command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from handmade import CLASSES, FIRST_NEITHER, FIRST_SECOND, SETTINGS, columns, encoded, png, segmenter, write
from tiny import P

from ovseg import params
from ovseg.benchmarks import calibration, evaluation
from ovseg.benchmarks.calibration import THRESHOLDS, open_calibration, sweep
from ovseg.benchmarks.datasets import open_benchmark
from ovseg.benchmarks.miou import mean
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter
from ovseg.training.decoder import Decoder

PROJECT = Path(params.__file__).parents[1]
ZEROS = columns(*[0] * 8)


def test_the_best_threshold_is_known(tmp_path):
    # Cosines of the columns with a are 1 1 1 3/4 1/4 0 0 0, with b all 0: the best softmax is their sigmoid, 0.731, 0.679, 0.562, 0.5.
    found = sweep(segmenter(), encoded(tmp_path, [columns(1, 1, 1, 0, 0, 0, 0, 0)], [FIRST_NEITHER]), 1)
    assert list(found) == list(THRESHOLDS) == [round(0.05 * step, 2) for step in range(1, 20)]
    # b is in no truth, and at 0.5 or below, where a ties with b, it counts as a; so it is nowhere
    by_hand = {
        0.5: (100 * 0 / 5 + 100 * 3 / 8) / 2,  # all columns are a: what equals a threshold is not below it
        0.55: (100 * 3 / 5 + 100 * 3 / 5) / 2,
        0.6: (100 * 4 / 5 + 100 * 3 / 4) / 2,
        0.65: (100 * 4 / 5 + 100 * 3 / 4) / 2,
        0.7: 100,
        0.75: (100 * 5 / 8 + 0) / 2,  # all columns are background
    }
    assert {threshold: found[threshold] for threshold in by_hand} == pytest.approx(by_hand)
    assert max(found, key=found.get) == 0.7


def test_one_pass_is_an_evaluation_at_each_threshold(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    maps = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 8)) for _ in range(3)]
    data = encoded(tmp_path, maps, rng.normal(size=(3, 2, 2, 2)))
    one, alone = segmenter(scale=3.0), {}
    for data.threshold in THRESHOLDS:
        alone[data.threshold] = mean(evaluation.evaluate({"one": one}, [data])["mine"]["one"])
    assert sweep(one, data, 3) == alone and len(set(alone.values())) > 3
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", 1)  # one row at a time
    assert sweep(one, data, 3) == alone


def test_no_more_than_the_first_pictures_are_scored(tmp_path):
    maps = [columns(*[1] * 8), columns(*[2] * 8), ZEROS]
    data = encoded(tmp_path / "three", maps, [FIRST_SECOND] * 3)
    data.windows = data.windows[:2]  # a third would not be there
    two = encoded(tmp_path / "two", maps[:2], [FIRST_SECOND] * 2)
    assert sweep(segmenter(), data, 2) == sweep(segmenter(), two, 9)


# ---- pictures to choose a threshold on


def test_a_folder_is_calibrated_on_another_folder(tmp_path):
    evaluated, other = write(tmp_path / "evaluated", [ZEROS] * 3), write(tmp_path / "other", [ZEROS])
    settings = Benchmark(folder=str(evaluated), calibration=str(other))
    benchmark = open_benchmark("mine", settings)
    assert len(benchmark) == 3 and [path.parts[-3] for path in open_calibration(benchmark, settings).files] == ["other"]
    (other / "classes.txt").write_text("background\nb\na\n")
    with pytest.raises(ValueError, match="benchmark mine: .* hold different classes"):
        open_calibration(benchmark, settings)


def test_shards_are_calibrated_on_other_shards(tmp_path):
    for number in range(2):
        with wds.TarWriter(str(tmp_path / f"b-{number}.tar"), encoder=False) as tar:
            tar.write({"__key__": f"p{number}", "png": png(np.zeros((8, 8, 3), np.uint8)), "seg.png": png(ZEROS)})
    (tmp_path / "names.txt").write_text("background\na\n")
    common = {"shards": str(tmp_path / "b-0.tar"), "label": "seg.png", "classes": str(tmp_path / "names.txt")}
    settings = Benchmark(calibration=str(tmp_path / "b-1.tar"), **common)
    evaluated = open_benchmark("mine", settings)
    assert [key for key, _, _ in open_calibration(evaluated, settings)] == ["p1"]
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar is evaluated"):
        open_calibration(evaluated, Benchmark(calibration=str(tmp_path / "b-*.tar"), **common))


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_pictures_under_another_name_are_no_other_pictures(tmp_path, link):
    folder = write(tmp_path / "evaluated", [ZEROS])
    other = write(tmp_path / "other", [ZEROS]) if link else f"{folder}/images/.."
    if link:
        (other / "images/0.png").unlink()
        link(folder / "images/0.png", other / "images/0.png")
    settings = Benchmark(folder=str(folder), calibration=str(other))
    with pytest.raises(ValueError, match="benchmark mine: .*0.png is evaluated: no threshold may be chosen on it"):
        open_calibration(open_benchmark("mine", settings), settings)


def test_a_benchmark_without_calibration_pictures_is_named_and_skipped(tmp_path, capsys):
    here = {name: str(write(tmp_path / name, [ZEROS])) for name in ("mine", "yours", "others")}
    settings = {"mine": Benchmark(folder=here["mine"])}
    with pytest.raises(ValueError, match="no benchmark has calibration pictures"):
        calibration.open_calibrations(settings)
    assert "benchmarks.mine.calibration names no pictures" in capsys.readouterr().out
    settings["yours"] = Benchmark(folder=here["yours"], calibration=here["others"])
    assert [benchmark.source for benchmark in calibration.open_calibrations(settings)] == [here["others"]]


def test_no_benchmark_with_a_background_is_an_error(tmp_path):
    settings = {"mine": Benchmark(folder=str(write(tmp_path, [ZEROS], CLASSES[1:])))}
    with pytest.raises(ValueError, match="no benchmark has a background"):
        calibration.open_calibrations(settings)


def test_the_worlds_own_benchmark_with_background_has_calibration_pictures():
    assert P.benchmarks["things"].calibration and P.benchmarks["things"].calibration != P.benchmarks["things"].shards


# ---- the command


class Colour:
    """A stand-in for FrozenCLIP: a picture of value 0 is like a, others like b."""

    patch = 4

    def encode_dense(self, windows):
        like = torch.from_numpy(windows[:, ::4, ::4, 0] > 0).long()
        return torch.nn.functional.one_hot(like, 2).permute(0, 3, 1, 2).float()

    def embed_classes(self, names, templates):
        return torch.eye(2)


def test_the_command_prints_what_goes_into_params_and_opens_no_evaluated_picture(tmp_path, monkeypatch, capsys):
    evaluated = write(tmp_path / "evaluated", [ZEROS] * 2, image=b"no picture")
    other = write(tmp_path / "other", [columns(*[1] * 8), columns(*[2] * 8)])
    without = write(tmp_path / "without", [ZEROS], CLASSES[1:], b"no picture")
    settings = {
        "mine": Benchmark(folder=str(evaluated), calibration=str(other)),
        "all": Benchmark(folder=str(without)),  # has no background, and needs no threshold
    }
    changed = P.model_copy(update={"benchmarks": settings, "segment": SETTINGS})
    monkeypatch.setattr(params, "load", lambda changes: changed)
    monkeypatch.setattr(calibration, "load_segmenter", lambda run, p: Segmenter(Colour(), Decoder(2), p.segment))
    before = sorted(tmp_path.rglob("*"))
    calibration.calibrate("mgca", 200)
    out = capsys.readouterr().out
    assert f"mine: mgca by pixels, 2 pictures of {other}" in out and "all:" not in out
    # everywhere the best softmax is sigmoid(1), 0.731: right up to 0.70, background from 0.75 on
    assert "     0.05  100.0  best\n" in out and "     0.70  100.0\n" in out and "     0.75   0.0\n" in out
    assert out.endswith("evaluate:\n  thresholds:\n    mine: 0.05\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_not_trained_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="models/trained/none/seeds/0 holds no decoder.safetensors: train it first"):
        calibration.load_segmenter("trained/none", P)


@pytest.mark.parametrize("arguments, said", [(["--pictures", "0"], "--pictures = 0: at least 1"), ([], "no params.yaml")])
def test_the_command_says_in_one_line_what_is_wrong(arguments, said, tmp_path):
    command = [sys.executable, "-m", "ovseg.benchmarks.calibration", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stdout == "" and len(done.stderr.splitlines()) == 1 and said in done.stderr
