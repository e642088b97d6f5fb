"""Checkpoints of a training, and what they must agree on with the run that resumes them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from ..data import captions
from . import distributed
from .batches import CachedImages, StreamedImages


def fingerprint(settings, seed, mgca, bank, texts, images):
    """What a training depends on: parameters, seed, texts, image features and code. Returns a hex digest.

    A checkpoint is resumed, and a finished training kept, only by the same. Not the number of seeds, workers and processes: workers and
    processes change the order of a stream (not of cached features), so that a run may be resumed with others, but ends with the
    weights of an uninterrupted one only with the same.
    """
    values = settings.model_dump(exclude={"seeds", "checkpoint_steps", "workers", "processes"})
    digest = hashlib.sha256(json.dumps([seed, values, mgca.model_dump(), torch.__version__]).encode())
    for code in (*sorted(Path(__file__).parent.glob("*.py")), Path(captions.__file__)):
        digest.update(code.read_bytes())
    for array in (bank.caption, bank.noun, bank.offset):
        digest.update(array)
    for array in (texts, images.array) if isinstance(images, CachedImages) else (texts,):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array[:: max(1, len(array) // 64)]))  # a sample of rows tells other features apart
    if isinstance(images, StreamedImages):
        digest.update("\n".join([str(images.size), images.clip.dense, *images.keys]).encode())
    return digest.hexdigest()


class Checkpoint:
    """A file that holds a training run between two steps, or does not exist. Written whole or not at all."""

    def __init__(self, path, fingerprint):
        self.path, self.fingerprint = Path(path), fingerprint

    def save(self, step, decoder, optimizer, history, seconds):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "decoder": decoder.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "seconds": seconds,
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def restore(self, decoder, optimizer):
        """Load the state into decoder and optimizer. Returns (step, history, seconds so far); (0, [], 0.0) if there is none of this run."""
        world, state = distributed.joined(), None
        if world.rank == 0 and self.path.is_file():  # the others may be machines without it
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                state = None
        state = world.from_first(state)
        if state is None:
            return 0, [], 0.0
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        if world.rank == 0:
            print(f"resuming at step {state['step']}, from {self.path}")
        return state["step"], state["history"], state["seconds"]
