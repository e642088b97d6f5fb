"""Data-parallel training: each process takes an equal share of every batch (torch.distributed over gloo or NCCL).

Every process computes the rows of its images in the (B, B) logits. These are gathered for the loss of the whole batch, of which each
process gets the gradients of its own rows: summed over processes, they are those of one process.
"""

import os
import signal
import tempfile
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


class World(NamedTuple):
    """The rank of this process among `size` processes."""

    rank: int = 0
    size: int = 1

    def share(self, batch):
        """This process' slice of a batch of `batch` images."""
        return slice(self.rank * (batch // self.size), (self.rank + 1) * (batch // self.size))

    def gather(self, rows):
        """Gather the rows of all processes in rank order: (b, ...) -> (B, ...). Only this process' own rows carry gradients."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def from_first(self, value):
        """Broadcast a Python object from the first process to all."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def joined():
    """The World of the current process group; a single process without one."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


def in_group(minutes, function, *arguments):
    """Return function(*arguments), called in the process group that `launch` or torchrun started. The last argument is a torch.device:
    for CUDA, each process gets its own GPU. Processes on one machine share its cores. minutes: how long one waits for others."""
    import joblib  # here, because importing a decoder imports this module

    *arguments, device = arguments
    torch.set_num_threads(max(1, joblib.cpu_count() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=minutes))
    result = function(*arguments, device)
    dist.destroy_process_group()
    return result


def launch(processes, *arguments):
    """Run `in_group` with these arguments in `processes` new processes on this machine. Returns the result of the first one. If one
    fails, the others are terminated and ChildFailedError gives its rank and error. SIGTERM ends all, and exits with 143."""
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}  # at a free port
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(1, 1, processes, DefaultLogsSpecs(logs), run_id="ovseg", max_restarts=0, **place)
        try:
            return elastic_launch(config, in_group)(*arguments)[0]
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
        finally:
            for number, handler in handlers.items():  # torch leaves its own, which raise SignalException
                signal.signal(number, handler)
