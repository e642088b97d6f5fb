"""The benchmark's plain losses against ours, what it measures of memory, and what becomes of a case that fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)  # processes of cases find it too
import bench  # noqa: E402
import bench_cases  # noqa: E402

from ovseg.methods import contrast, mgca  # noqa: E402

CASE = ("loss over B", "ours, B = 4", bench_cases.loss_case, ("ours", 4, 49, "bfloat16"))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_plain_losses_have_the_values_and_gradients_of_ours(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(12, 32, generator=generator, dtype=dtype)
    negative = contrast.negatives(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]), True)
    pixels = torch.randn(12, 196, 32, generator=generator, dtype=dtype).requires_grad_()
    plain, ours = (losses(pixels, texts, negative, bench_cases.MGCA) for losses in (bench_cases.plain_losses, mgca.losses))
    assert set(plain) == set(ours) == {"object", "region", "pixel"}
    for level in plain:
        torch.testing.assert_close(ours[level], plain[level], rtol=tolerance, atol=0)
        gradients = [torch.autograd.grad(found[level], pixels, retain_graph=True)[0] for found in (plain, ours)]
        assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[0].norm() and gradients[0].any()


class PatchMeans(torch.nn.Module):
    """A stand-in for CLIP: the mean colour of each of 28x28 patches, repeated to the width of embeddings."""

    patch = 16

    def encode_dense(self, windows):
        pixels = torch.from_numpy(windows).permute(0, 3, 1, 2).float() - 127.5
        return torch.nn.functional.avg_pool2d(pixels, 16).repeat(1, 171, 1, 1)[:, : bench_cases.WIDTH]


def test_plain_segmentation_has_the_labels_of_ours(monkeypatch):
    monkeypatch.setattr(bench_cases, "vit", lambda device: PatchMeans())
    monkeypatch.setattr(bench_cases, "SEGMENT", bench_cases.SEGMENT.model_copy(update={"precision": "float32", "unit": "pixel"}))
    found = []
    for which in ("plain", "ours"):
        torch.manual_seed(0)
        found.append(bench_cases.segment_case("cpu", which, 5, 450, 600).run())
    assert found[0].shape == (450, 600) and len(found[0].unique()) > 1
    assert (found[0] == found[1]).float().mean() > 0.999  # scores that are nearly equal may go either way


PEAK = f"""
import sys
sys.path.insert(0, {SCRIPTS!r})
import bench
import numpy as np
np.ones(300 << 20, np.uint8)
held = np.ones(100 << 20, np.uint8)
print(bench.peak_memory(lambda: np.ones(100 << 20, np.uint8).sum(), "cpu"))
"""


def test_peak_memory_is_that_of_the_run_whatever_was_freed_before():
    """In a process of its own, as the cases: one that has run other tests may have memory to use again."""
    found = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert 0.9 < found / (100 << 20) < 1.5


def broken(device):
    raise ValueError("this case is broken")


def exhausted(device):
    raise MemoryError


def test_measuring_reports_every_case_and_names_those_that_fail(monkeypatch):
    failing = [("step", "a broken one", broken, ()), ("step", "a large one", exhausted, ())]
    monkeypatch.setattr(bench, "cases", lambda device: [CASE, *failing])
    monkeypatch.setattr(bench, "rates", lambda device: {"float32": 1e6, "bfloat16": 2e6, "copy": 1e12})
    lines = []
    found = bench.measure("cpu", lines.append)
    good, bad, large = found["cases"]
    assert good["floor"] == 4 * 4 * 49 * 512 / 2e6 and good["ratio"] == good["seconds"] / good["floor"] and good["seconds"] > 0
    assert 0 <= good["gradient_error"] < 0.1
    assert bad["error"] == "ended with exit code 1" and large["error"] == "out of memory"
    assert len(lines) == 3 and "MiB" in lines[0] and "exit code 1" in lines[1]


def test_the_floor_is_of_bytes_where_those_take_longer(monkeypatch):
    monkeypatch.setattr(bench, "cases", lambda device: [CASE])
    monkeypatch.setattr(bench, "rates", lambda device: {"float32": 1e12, "bfloat16": 1e12, "copy": 1e3})
    (case,) = bench.measure("cpu", lambda line: None)["cases"]
    assert case["floor"] == 2 * 4 * 49 * 512 * 4 / 1e3  # pixels read, gradients written, float32


def test_growth_is_drawn_for_each_group_that_grows():
    cases = [{"group": "loss over B", "name": f"{w}, B = {b}", "seconds": b, "memory": b << 20} for b in (1, 2) for w in ("plain", "ours")]
    cases += [
        {"group": "step", "name": "16 images", "seconds": 1, "memory": 1},
        {"group": "loss over B", "name": "plain, B = 9", "error": "x"},
    ]
    figure = bench.growth({"cases": cases})
    assert [axis.get_title() for axis in figure.axes] == ["loss over B", ""]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["B = 1", "B = 2"]
