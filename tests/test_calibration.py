import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import params
from ovseg.benchmarks import calibration, evaluation
from ovseg.benchmarks.calibration import THRESHOLDS, sweep
from ovseg.benchmarks.datasets import FolderBenchmark
from ovseg.methods.decoder import Decoder
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import Scores, stitch

PROJECT = Path(__file__).parent.parent
P = params.load(path=PROJECT / "params.yaml")
SETTINGS = P.segment.model_copy(update={"unit": "pixel", "short_side": 8, "window": 8, "stride": 8, "scale": 1.0, "precision": "float32"})
CLASSES = ("background", "a", "b")
LIKE_A_AND_NONE = [[[1, 0], [1, 0]], [[0, 0], [0, 0]]]  # features (2, 2, 2): the left half is like a, the right one like neither
LIKE_A_AND_B = [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def columns(*labels):
    """An 8x8 label map of those columns."""
    return np.tile(np.array(labels, np.uint8), (8, 1))


def folder(path, maps, classes=CLASSES, image=None):
    """A benchmark's folder of 8x8 pictures with those label maps. image: the bytes of each picture. Returns its path."""
    for part in ("images", "labels"):
        (path / part).mkdir(parents=True)
    for index, labels in enumerate(maps):
        (path / "images" / f"{index}.png").write_bytes(image or png(np.full((8, 8, 3), index, np.uint8)))
        (path / "labels" / f"{index}.png").write_bytes(png(labels))
    (path / "classes.txt").write_text("\n".join(classes) + "\n")
    return path


def encoded(path, maps, features):
    return evaluation.Encoded(FolderBenchmark("mine", folder(path, maps)), torch.eye(2), np.array(features, np.float16))


def segmenter(**changes):
    return Segmenter(None, Decoder(2), SETTINGS.model_copy(update=changes))


def test_the_best_threshold_is_known(tmp_path):
    # Cosines of the columns with a are 1 1 1 3/4 1/4 0 0 0, with b all 0: the best softmax is their sigmoid, 0.731, 0.679, 0.562, 0.5.
    data = encoded(tmp_path, [columns(1, 1, 1, 0, 0, 0, 0, 0)], [LIKE_A_AND_NONE])
    found = sweep(segmenter(), data, 1)
    assert list(found) == list(THRESHOLDS) == [round(0.05 * step, 2) for step in range(1, 20)]
    # b is in no truth, and at 0.5 or below, where a ties with b, it counts as a; so it is nowhere
    by_hand = {
        0.5: (100 * 0 / 5 + 100 * 3 / 8) / 2,  # all columns are a
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
    one = segmenter(scale=3.0)
    alone = {t: evaluation.evaluate({"one": one}, data, t)["one"]["miou"] for t in THRESHOLDS}
    assert sweep(one, data, 3) == alone and len(set(alone.values())) > 3
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", 1)  # one row at a time
    assert sweep(one, data, 3) == alone


def test_what_equals_a_threshold_is_not_below_it(tmp_path):
    # equal cosines with two classes: the softmax is exactly 0.5
    data = encoded(tmp_path, [columns(*[1] * 8)], [[[[0, 0], [0, 0]]] * 2])
    found = sweep(segmenter(), data, 1)
    assert found[0.5] == 100 and found[0.55] == 0


def test_no_more_than_the_first_pictures_are_scored(tmp_path):
    maps = [columns(*[1] * 8), columns(*[2] * 8), columns(*[0] * 8)]
    data = encoded(tmp_path / "three", maps, [LIKE_A_AND_B] * 3)
    data.windows = data.windows[:2]  # a third would not be there
    two = encoded(tmp_path / "two", maps[:2], [LIKE_A_AND_B] * 2)
    assert sweep(segmenter(), data, 2) == sweep(segmenter(), two, 9)


def test_rows_are_recognised_a_few_at_a_time(monkeypatch):
    scores = stitch(torch.randn(1, 5, 2, 2, generator=torch.Generator().manual_seed(0)), evaluation.layout(8, 8, SETTINGS), 8, (8, 8))
    best, label = calibration.recognise(scores, 2.0)
    everything = (scores.rows() * 2.0).softmax(0).max(0)
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", 5 * 8 * 3)
    made, rows = [], Scores.rows
    monkeypatch.setattr(Scores, "rows", lambda self, part: made.append(part) or rows(self, part))
    for values, again in zip((best, label), calibration.recognise(scores, 2.0), strict=True):
        torch.testing.assert_close(values, again)
    assert [(part.start, part.stop) for part in made] == [(0, 3), (3, 6), (6, 9)]
    torch.testing.assert_close(best, everything.values)
    assert torch.equal(label, everything.indices + 1)


class Colour:
    """A stand-in for FrozenCLIP: a picture of value 0 is like a, others like b."""

    patch = 4

    def encode_dense(self, windows, way=None):
        like = torch.from_numpy(windows[:, ::4, ::4, 0] > 0).long()
        return torch.nn.functional.one_hot(like, 2).permute(0, 3, 1, 2).float()

    def embed_classes(self, names, templates):
        return torch.eye(2)


def test_the_command_prints_what_goes_into_params_and_opens_no_evaluated_picture(tmp_path, monkeypatch, capsys):
    evaluated = folder(tmp_path / "evaluated", [columns(*[0] * 8)] * 2, image=b"no picture")
    other = folder(tmp_path / "other", [columns(*[1] * 8), columns(*[2] * 8)])
    without = folder(tmp_path / "without", [columns(*[0] * 8)], CLASSES[1:], b"no picture")
    settings = {
        "mine": params.Benchmark(folder=str(evaluated), calibration=str(other)),
        "all": params.Benchmark(folder=str(without)),  # has no background, and needs no threshold
    }
    changed = P.model_copy(update={"benchmarks": settings, "segment": SETTINGS})
    monkeypatch.setattr(params, "load", lambda: changed)
    monkeypatch.setattr(calibration, "load", lambda run, p: Segmenter(Colour(), Decoder(2), p.segment))
    before = sorted(path for path in tmp_path.rglob("*"))
    calibration.calibrate("mgca", 200)
    out = capsys.readouterr().out
    assert f"mine: mgca by pixels, 2 pictures of {other}" in out and "all:" not in out
    # everywhere the best softmax is sigmoid(1), 0.731: right up to 0.70, background from 0.75 on
    assert "     0.05  100.0  best\n" in out and "     0.70  100.0\n" in out and "     0.75   0.0\n" in out
    assert out.endswith("evaluate:\n  thresholds:\n    mine: 0.05\n")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_benchmark_without_calibration_pictures_is_named_and_skipped(tmp_path, capsys):
    here = {name: str(folder(tmp_path / name, [columns(*[0] * 8)])) for name in ("mine", "yours", "others")}
    settings = {"mine": params.Benchmark(folder=here["mine"])}
    with pytest.raises(ValueError, match="no benchmark has calibration pictures"):
        calibration.open_all(settings)
    assert "benchmarks.mine.calibration" in capsys.readouterr().out
    settings["yours"] = params.Benchmark(folder=here["yours"], calibration=here["others"])
    assert [benchmark.source for benchmark in calibration.open_all(settings)] == [here["others"]]


def test_no_benchmark_with_a_background_is_an_error(tmp_path):
    settings = {"mine": params.Benchmark(folder=str(folder(tmp_path, [columns(*[0] * 8)], CLASSES[1:])))}
    with pytest.raises(ValueError, match="no benchmark has a background"):
        calibration.open_all(settings)


def test_a_run_that_is_not_trained_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="models/ablations/none holds no decoder.safetensors: train it first"):
        calibration.load("ablations/none", P)


@pytest.mark.parametrize("arguments, said", [(["--pictures", "0"], "--pictures = 0: at least 1"), ([], "no params.yaml")])
def test_the_command_says_in_one_line_what_is_wrong(arguments, said, tmp_path):
    command = [sys.executable, "-m", "ovseg.calibration", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stdout == "" and len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_the_worlds_own_benchmark_with_background_has_calibration_pictures():
    assert P.benchmarks["things"].calibration and P.benchmarks["things"].calibration != P.benchmarks["things"].shards
