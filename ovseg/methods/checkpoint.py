"""Training checkpoints, their atomic writing, and the fingerprint of all that a training run depends on."""

import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np
import torch

from ..data import captions
from ..data.files import write_whole
from ..values import METHODS
from . import distributed
from .batches import CachedImages


def fingerprint(settings, seed, sections, images, bank, texts, labels=None):
    """Hex digest of all that a training run depends on: parameters, seed, texts, image features and code. Arguments: see training.train.

    A checkpoint is resumed, and a finished run kept, only if the fingerprints are equal. The numbers of workers and processes are
    excluded. They change the order of streamed images (not of cached features), so resuming a streamed run with other numbers gives
    different weights than an uninterrupted run. Only the methods being trained are included.
    """
    values = settings.model_dump(exclude={"seeds", "checkpoint_steps", "workers", "processes"})
    cached = isinstance(images, CachedImages)
    streamed = [] if cached else [images.size, images.clip.dense, images.clip.positions, *images.keys]
    methods = {name: section and section.model_dump(exclude={"labels"}) for name, section in sections.items()}
    package, read = Path(__file__).parent, [Path(captions.__file__)]
    others = set(METHODS) - set(sections)
    if not cached:
        read += [*sorted((package.parent / "clip").glob("*.py")), *sorted((package.parent / "data").glob("*.py"))]
    digest = hashlib.sha256(json.dumps([seed, values, methods, torch.__version__, streamed]).encode())
    for code in (*(file for file in sorted(package.glob("*.py")) if file.stem not in others), *read):
        digest.update(code.read_bytes())
    for array in (bank.caption, bank.noun, bank.offset):
        digest.update(array)
    if labels is not None:
        digest.update(labels.maps)
        digest.update(labels.classes.numpy())
    for array in (texts, images.array) if cached else (texts,):
        digest.update(str(array.shape).encode())
        for start in range(0, len(array), 1024):  # features may be larger than memory
            digest.update(zlib.crc32(np.ascontiguousarray(array[start : start + 1024])).to_bytes(4))
    return digest.hexdigest()


def save_checkpoint(path, mark, step, learner, optimizer, history, seconds):
    """Write a checkpoint after `step` steps of the training run with fingerprint `mark`."""
    state = {"fingerprint": mark, "step": step, "learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    write_state(path, state | {"history": history, "seconds": seconds})


def write_state(path, state):
    """Atomically write a state in torch.save's format, followed by its CRC-32, which torch.load ignores."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_whole(path, lambda part: part.write_bytes(data + zlib.crc32(data).to_bytes(4)))


def read_state(path):
    """Read a state written by `write_state`. Prints a line and returns None if the file is damaged."""
    data = Path(path).read_bytes()
    if len(data) < 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:]):
        print(f"{path} is damaged: it is not used, training begins anew")
        return None
    return torch.load(io.BytesIO(data[:-4]), map_location="cpu", weights_only=True)


def restore_checkpoint(path, mark, learner, optimizer):
    """Load a checkpoint into learner and optimizer. Returns (step, history, seconds), or (0, [], 0.0) if none matches `mark`."""
    world, state = distributed.joined(), None
    if world.rank == 0 and Path(path).is_file():  # other machines may not have the file
        state = read_state(path)
    state = world.from_first(state if state and state["fingerprint"] == mark else None)
    if state is None:
        return 0, [], 0.0
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    if world.rank == 0:
        print(f"resuming at step {state['step']}, from {path}")
    return state["step"], state["history"], state["seconds"]
