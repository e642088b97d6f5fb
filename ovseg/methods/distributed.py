"""More than one process: each takes an equal part of every batch (torch.distributed over gloo or NCCL).

Images and their pixel embeddings stay where they are. Every process knows the texts of the whole batch, so its rows of the (B, B)
logits are complete; rows are then gathered, and each process computes the loss of the whole batch. A gradient flows through a
process' own rows only: summed over processes it is the gradient of one process on the same batch.
"""

import os
import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


@dataclass(frozen=True)
class World:
    """This process' rank among `size` processes. Alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, batch):
        """This process' part of a batch of `batch` images, a slice."""
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, rows):
        """The rows of all processes, (b, ...) -> (B, ...), in order; only one's own carry gradients."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def from_first(self, value):
        """The first process' value of a Python object, for all."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def joined():
    """The World of the process group that this process has joined, or of one process alone."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


def in_group(function, *arguments):
    """Join the processes that `launch` or torchrun started, return function(*arguments), leave.

    The last argument is a torch.device: for a GPU, the function gets one of its own. The processes of a machine share its cores.
    """
    *arguments, device = arguments
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    found = function(*arguments, device)
    dist.destroy_process_group()
    return found


def launch(processes, function, *arguments):
    """`in_group` in so many new processes of this machine. Returns what the function returns in the first one.

    If one raises or is killed, the others are ended and ChildFailedError names its rank and its error. None outlives this process. A
    SIGTERM is passed on to all of them; once they have ended, or 30 s later, this process exits with 128 + its number.
    """
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}  # at a free port
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(1, 1, processes, DefaultLogsSpecs(logs), run_id="ovseg", max_restarts=0, **place)
        try:
            return elastic_launch(config, in_group)(function, *arguments)[0]
        except SignalException as signal:
            raise SystemExit(128 + signal.sigval) from None
