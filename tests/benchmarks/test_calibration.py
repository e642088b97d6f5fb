"""The background's threshold: the sweep by hand and against evaluations, the images it may be chosen on, the command."""

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from handmade import CLASSES, SETTINGS, columns
from small import write_tar
from tiny import P, encoded, write_benchmark

from ovseg import params
from ovseg.benchmarks import calibration, evaluation
from ovseg.benchmarks.calibration import THRESHOLDS, open_calibration, sweep
from ovseg.benchmarks.datasets import FolderBenchmark, open_benchmark
from ovseg.benchmarks.miou import mean
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter
from ovseg.training.decoder import Decoder

ZEROS = columns(*[0] * 8)


class Grey:
    """Stands in for FrozenCLIP: cosines of a patch with the classes a and b are its grey value / 240 and 0."""

    patch = 4

    def encode_dense(self, windows):
        angle = torch.from_numpy(windows[:, ::4, ::4, 0]).float() / 240
        return torch.stack([angle, torch.zeros_like(angle), (1 - angle**2).sqrt()], 1)

    def embed_classes(self, names, templates):
        return torch.eye(3)[:2]


def grey(scale=1.0):
    return Segmenter(Grey(), Decoder(3), SETTINGS.model_copy(update={"scale": scale}))


def picture(left, right):
    """An 8x8 picture with these grey values in its left and right half."""
    return encoded(np.repeat(np.array([[left] * 4 + [right] * 4] * 8, np.uint8)[..., None], 3, 2))


def test_one_pass_is_an_evaluation_at_each_threshold_of_the_first_pictures(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    maps = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 8)) for _ in range(3)]
    benchmark, one = FolderBenchmark("mine", write_benchmark(tmp_path, maps, CLASSES)), grey(scale=3.0)
    for index, file in enumerate(benchmark.files):
        file.write_bytes(picture(60 + 50 * index, 30 * index))
    encoded = [evaluation.encode_classes(one, benchmark, threshold) for threshold in THRESHOLDS]
    alone, curve = [mean(evaluation.evaluate({"one": one}, [at])["mine"]["one"]) for at in encoded], sweep(one, benchmark)
    assert list(curve) == list(THRESHOLDS) == [round(0.05 * step, 2) for step in range(1, 20)]
    assert list(curve.values()) == alone and len(set(alone)) > 3
    monkeypatch.setattr("ovseg.segmentation.windows.ENTRIES", 1)  # one row at a time
    assert sweep(one, benchmark, 3) == curve
    two = sweep(one, benchmark, 2)
    benchmark.files[2].write_bytes(b"no picture")
    assert sweep(one, benchmark, 2) == two != curve


def test_a_folder_is_calibrated_on_another_folder(tmp_path):
    evaluated, other = (write_benchmark(tmp_path / name, [ZEROS] * count, CLASSES) for name, count in (("evaluated", 3), ("other", 1)))
    settings = Benchmark(folder=str(evaluated), calibration=str(other))
    benchmark = open_benchmark("mine", settings)
    assert len(benchmark) == 3 and [path.parts[-3] for path in open_calibration(benchmark, settings).files] == ["other"]
    for link in (os.symlink, os.link):  # an evaluated picture under another name
        (other / "images/0.png").unlink()
        link(evaluated / "images/0.png", other / "images/0.png")
        with pytest.raises(ValueError, match="benchmark mine: .*0.png is evaluated: no threshold may be chosen on it"):
            open_calibration(benchmark, settings)
    (other / "classes.txt").write_text("background\nb\na\n")
    with pytest.raises(ValueError, match="benchmark mine: .* hold different classes"):
        open_calibration(benchmark, settings)


def test_shards_are_calibrated_on_other_shards(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"b-{number}.tar", {f"p{number}": {"png": picture(0, 0), "seg.png": encoded(ZEROS)}})
    (tmp_path / "names.txt").write_text("background\na\n")
    settings = Benchmark(shards=f"{tmp_path}/b-0.tar", label="seg.png", classes=f"{tmp_path}/names.txt", calibration=f"{tmp_path}/b-1.tar")
    evaluated = open_benchmark("mine", settings)
    assert [key for key, _, _ in open_calibration(evaluated, settings)] == ["p1"]
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar is evaluated"):
        open_calibration(evaluated, settings.model_copy(update={"calibration": f"{tmp_path}/b-*.tar"}))


def test_the_command_prints_lines_for_params_and_opens_no_evaluated_picture(tmp_path, monkeypatch):
    def run(benchmarks, *arguments):
        monkeypatch.setattr(params, "load", lambda: P.model_copy(update={"benchmarks": benchmarks}))
        return CliRunner().invoke(calibration.main, arguments)

    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    evaluated = write_benchmark(tmp_path / "evaluated", [ZEROS] * 2, CLASSES, b"no picture")
    other = write_benchmark(tmp_path / "other", [columns(*[1] * 8)] * 2, CLASSES, picture(240, 240))
    mine, yours = Benchmark(folder=str(evaluated), calibration=str(other)), Benchmark(folder=str(evaluated))
    without = Benchmark(folder=str(write_benchmark(tmp_path / "without", [ZEROS], CLASSES[1:], b"no picture")))  # needs no threshold
    assert "models/default holds no segmenter.json" in str(run({"mine": mine}).exception)
    assert "no benchmark with a background has calibration pictures" in str(run({"yours": yours}).exception)
    assert "0 is not in the range" in run({"mine": mine}, "--pictures", "0").output
    loaded = []
    monkeypatch.setattr(Segmenter, "load", lambda folder, device: loaded.append(folder) or grey())
    result = run({"mine": mine, "yours": yours, "all": without}, "--run", "mgca.k=0.2")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and loaded == ["models/mgca.k=0.2"]
    assert lines[0] == "skipped: benchmark yours: benchmarks.yours.calibration names no pictures to choose a threshold on"
    # everywhere the best softmax is sigmoid(1), 0.731: right up to 0.70, background from 0.75 on
    assert "mine: mIoU of mgca.k=0.2" in lines and {"  0.05  100.0", "  0.70  100.0", "  0.75  0.0"} <= set(lines)
    assert lines[-3:] == ["evaluate:", "  thresholds:", "    mine: 0.05"]
