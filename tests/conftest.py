"""Fixtures that tests of several packages share, and how many threads tests get."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes that tests start share the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
os.environ["MPLBACKEND"] = "agg"  # no windows


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """With tensors this small, threads on a busy machine only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clip():
    """A FrozenCLIP of random weights: 32 px, patch 8, d = 16."""
    import open_clip
    from tiny import TINY

    from ovseg.clip.frozen import FrozenCLIP
    from ovseg.world import pretraining

    torch.manual_seed(0)
    model = open_clip.model.CLIP(**pretraining.model_config(TINY))
    for parameter in model.parameters():  # the file that `save` writes is float16
        parameter.data = parameter.data.half().float()
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))


@pytest.fixture(scope="module")
def decoder(clip):
    """A Decoder of random weights whose gates are open."""
    from ovseg.training.decoder import Decoder

    torch.manual_seed(1)
    decoder = Decoder(clip.width)
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.7)
    return decoder
