"""The benchmark: its plain versions against ours, its measuring of memory, and its report of cases that fail."""

import mmap
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import bench  # noqa: E402
import bench_cases  # noqa: E402

from ovseg.methods import mgca  # noqa: E402


def test_plain_losses_have_the_values_and_gradients_of_ours():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, 196, 32, generator=generator, dtype=torch.float64).requires_grad_()
    texts, negative = torch.randn(12, 32, generator=generator, dtype=torch.float64), ~torch.eye(12, dtype=torch.bool)
    plain, ours = (losses(pixels, texts, negative, bench_cases.MGCA) for losses in (bench_cases.plain_losses, mgca.losses))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=0)
    first, second = (torch.autograd.grad(sum(losses.values()), pixels)[0] for losses in (plain, ours))
    assert (first - second).norm() <= 1e-9 * first.norm() and first.any()
    for which in ("plain", "ours"):
        bench_cases.loss_case("cpu", which, 4, 49).run()


def test_the_stream_reads_every_image():
    assert bench_cases.stream_case("cpu", 0, 512).run() == 512


class PatchMeans(torch.nn.Module):
    """In place of a CLIP: the mean colour of each of 28x28 patches, repeated to the width of embeddings."""

    patch = 16

    def encode_dense(self, windows):
        pixels = torch.from_numpy(windows).permute(0, 3, 1, 2).float() - 127.5
        return torch.nn.functional.avg_pool2d(pixels, 16).repeat(1, 171, 1, 1)[:, : bench_cases.WIDTH]


def test_plain_segmentation_has_the_labels_of_ours(monkeypatch):
    monkeypatch.setattr(bench_cases, "vit", lambda device: PatchMeans())
    monkeypatch.setattr(bench_cases, "SEGMENT", bench_cases.SEGMENT.model_copy(update={"precision": "float32", "unit": "pixel"}))
    labels = []
    for which in ("plain", "ours"):
        torch.manual_seed(0)
        labels.append(bench_cases.segment_case("cpu", which, 5, 450, 600).run())
    assert labels[0].shape == (450, 600) and len(labels[0].unique()) > 1
    assert (labels[0] == labels[1]).float().mean() > 0.999  # scores that are nearly equal may go either way


def touch(size):
    np.frombuffer(mmap.mmap(-1, size), np.uint8)[:] = 1  # new pages, whatever the allocator keeps


def case(device, error=None):
    if error:
        raise error
    touch(300 << 20)  # freed before the run
    return bench_cases.Case(lambda: touch(100 << 20), {"float32": 6_000_000}, 2_000)


def test_measuring_reports_memory_floor_and_failures_of_each_case(monkeypatch):
    cases = [("loss over B", f"ours, {i}", case, (error,)) for i, error in enumerate((None, ValueError(), MemoryError()))]
    monkeypatch.setattr(bench, "cases", lambda device: cases)
    monkeypatch.setattr(bench, "rates", lambda device: {"float32": 1e6, "bfloat16": 2e6, "copy": 1e2})
    fork = multiprocessing.get_context("fork")  # imports nothing again
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda method: fork)
    measured = bench.measure("cpu", lambda line: None)
    good, bad, full = measured["cases"]
    assert good["floor"] == 20 and good["ratio"] == good["seconds"] / 20  # of its bytes; its multiply-adds take 6 seconds
    assert 0.9 < good["memory"] / (100 << 20) < 1.5
    assert bad["error"] == "ended with exit code 1" and full["error"] == "out of memory"
    assert [axis.get_title() for axis in bench.growth(measured).axes] == ["loss over B", ""]
