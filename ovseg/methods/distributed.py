"""More than one process: each takes an equal part of every batch (torch.distributed over gloo or NCCL).

Images and their pixel embeddings stay where they are. Every process knows the texts of the whole batch, so that its
rows of the (B, B) logits are complete; rows are then gathered, and each process computes the loss of the whole batch. A
gradient flows through its own rows only: summed over processes it is the gradient of one process on the same batch.
"""

import os
import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process' place among `size`. Alone by default."""

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
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def joined():
    """The World of the process group that this process has joined, or of one process alone."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


def join(device, **rendezvous):
    """Join the other processes. device: torch.device of this one. rendezvous: of init_process_group, none under torchrun."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **rendezvous)


def own_device(device, local_rank):
    """The device of a process: its own GPU, or the CPU."""
    return torch.device("cuda", local_rank) if torch.device(device).type == "cuda" else torch.device("cpu")


def launch(processes, function, device, *arguments):
    """Run function(device, *arguments) in so many processes of this machine. Whichever fails ends all, with its error."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (processes, folder, function, device, arguments), processes)


def leave():
    """Leave the process group."""
    dist.destroy_process_group()


def _process(rank, processes, folder, function, device, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}  # webdataset's splitters look here
    device = own_device(device, rank)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    join(device, init_method=f"file://{folder}/meeting-point", rank=rank, world_size=processes)
    function(device, *arguments)
    leave()
