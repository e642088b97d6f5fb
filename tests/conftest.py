"""Fixtures that several rooms' tests share, and how many threads they get."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the cores are shared: threads of one file would wait for those of others
    threads = max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start


@pytest.fixture(scope="module")
def one_thread():
    """With tensors this small, threads on a busy machine only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
