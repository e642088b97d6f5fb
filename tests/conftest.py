"""Fixtures that several rooms' tests share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """With tensors this small, threads on a busy machine only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
