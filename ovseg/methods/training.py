"""Training the decoder: the loop, the schedule, where batches come from, checkpoints that survive being killed.

Every random choice is drawn from (seed, epoch) or (seed, step) rather than from a running generator, so that a
checkpoint is just the step, the weights and the optimiser, and a resumed run ends with the very weights that an
uninterrupted one has. Several processes draw the same numbers, so that each knows the whole batch and encodes its part.

`torchrun ... -m ovseg.methods.training` trains the headline over several machines; the train notebook then finds the last checkpoint
of the first and goes on from there: to the pictures.
"""

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import params
from ..clip import features
from ..data import captions
from . import alignment, distributed, mining
from . import decoder as decoding
from .batches import CachedImages, StreamedImages, open_pairs


def learning_rate(step, steps, warmup, peak):
    """Learning rate of a step: linear warm-up over `warmup` steps, then a cosine down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(decoder, settings):
    """Adam with a weight decay as the paper says, or AdamW. settings: params.Train."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(decoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def train(settings, mgca, images, bank, texts, checkpoint, device="cpu"):
    """Train a decoder. Returns (Decoder on the CPU, history).

    settings: params.Train; mgca: params.Mgca. images: CachedImages or StreamedImages of N pairs. bank: TextBank of the
    same pairs. texts: (T, d) embeddings of bank.texts, a batch of which is read at a time. checkpoint: path; if a killed run
    of the same settings, data and code left it, training goes on from there. It is still there at the end: remove it once the
    weights are saved.
    In a process group every process calls this, and gets the same decoder; the first one writes the checkpoints.
    history: a dict per step with step, epoch, lr, loss, a loss for each level, and both gates.
    Raises ValueError when the batch is larger than the data, or does not divide among the processes.
    """
    world = distributed.joined()
    if settings.batch > len(bank):
        raise ValueError(f"train.batch = {settings.batch}: allowed are 2..{len(bank)}, the number of pairs")
    if settings.batch % world.size:
        raise ValueError(f"train.batch = {settings.batch}: allowed are multiples of the number of processes, {world.size}")
    torch.manual_seed(settings.seed)
    decoder = decoding.Decoder(images.width).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(decoder, settings)
    per_epoch = images.batches(settings.batch)
    if per_epoch == 0:
        raise ValueError(
            f"train.batch = {settings.batch}: some of {world.size} processes have fewer pairs in their shards; use more shards"
        )
    steps = max(1, round(settings.epochs * per_epoch))
    warmup = round(settings.warmup_epochs * per_epoch)
    state = Checkpoint(checkpoint, fingerprint(settings, mgca, bank, texts, images))
    step, history = state.restore(decoder, optimizer)
    forward = torch.nn.parallel.DistributedDataParallel(decoder) if world.size > 1 else decoder
    device_type = torch.device(device).type
    progress = tqdm(total=steps, initial=step, desc="train", mininterval=2, disable=world.rank > 0)
    while step < steps:
        epoch, skip = divmod(step, per_epoch)
        for rows, dense in images.epoch(settings.seed, epoch, settings.batch, skip, device):
            text_ids = bank.draw(rows, np.random.default_rng([settings.seed, 1, step]), settings.caption_probability)
            subjects = torch.from_numpy(bank.subjects(text_ids)).to(device, non_blocking=True)
            drawn = features.as_tensor(texts[text_ids], device)  # B, d
            lr = learning_rate(step, steps, warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device_type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                pixels = forward(dense)  # b, d, 2h, 2w
            pixels = pixels.float().flatten(2).transpose(1, 2)  # b, L, d
            levels = alignment.losses(pixels, drawn, subjects, mgca, world)
            loss = sum(levels.values())
            optimizer.zero_grad(set_to_none=True)
            (loss * world.size).backward()  # DDP takes the mean over processes of what is to be summed
            optimizer.step()
            gates = {f"gate{i}": block.gate.detach().clone() for i, block in enumerate(decoder.blocks)}
            history.append(
                {
                    "step": step,
                    "epoch": step / per_epoch,
                    "lr": lr,
                    "loss": loss.detach(),
                    **{name: value.detach() for name, value in levels.items()},
                    **gates,
                }
            )
            step += 1
            progress.update()
            if step % settings.checkpoint_steps == 0 or step == steps:
                history = _numbers(history)
                if not math.isfinite(history[-1]["loss"]):
                    raise FloatingPointError(f"the loss is {history[-1]['loss']} at step {step}: try a smaller train.lr")
                progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
                if world.rank == 0:
                    state.save(step, decoder, optimizer, history)
            if step == steps:
                break
        if step < min(steps, (epoch + 1) * per_epoch):
            raise ValueError(f"epoch {epoch} ends {(epoch + 1) * per_epoch - step} batches early: the shards have changed since `prepare`")
    progress.close()
    return decoder.cpu().eval(), history


def _numbers(history):
    """The history with tensors turned into floats: once a checkpoint, so that a GPU is not waited for at every step."""
    return [{name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()} for row in history]


def fingerprint(settings, mgca, bank, texts, images):
    """What a checkpoint must agree on with the run that resumes it: parameters, texts, image features and code.

    Not the numbers of workers and processes. They change the order of a stream (not of cached features): a run may be
    resumed with others, but ends with the weights of an uninterrupted one only with the same.
    """
    digest = hashlib.sha256(
        json.dumps([settings.model_dump(exclude={"checkpoint_steps", "workers", "processes"}), mgca.model_dump()]).encode()
    )
    for code in (__file__, alignment.__file__, captions.__file__, decoding.__file__, mining.__file__, distributed.__file__):
        digest.update(Path(code).read_bytes())
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

    def save(self, step, decoder, optimizer, history):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "decoder": decoder.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def restore(self, decoder, optimizer):
        """Load the state into decoder and optimizer. Returns (step, history); (0, []) if there is none of this run."""
        world, state = distributed.joined(), None
        if world.rank == 0 and self.path.is_file():  # the others may be machines without it
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                state = None
        state = world.from_first(state)
        if state is None:
            return 0, []
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        if world.rank == 0:
            print(f"resuming at step {state['step']}, from {self.path}")
        return state["step"], state["history"]


def run(name, clip, mgca, settings, device):
    """Train the run `name`, in settings.processes processes of this machine, into models/NAME/.

    Writes decoder.safetensors, history.csv (a row a step, see `train`) and training.json (seed, seconds, parameters).
    Returns the path of its last checkpoint, to be removed when nothing can fail any more. clip, mgca, settings:
    params.Clip, Mgca, Train.
    """
    if settings.processes == 1:
        return _run(device, name, clip, mgca, settings)
    params.processes(settings.processes, device)
    distributed.launch(settings.processes, _run, device, name, clip, mgca, settings)
    return checkpoint_of(name)


def checkpoint_of(name):
    """Where the run's checkpoint lies while it trains."""
    return Path("runs/checkpoints") / f"{name}.pt"


def _run(device, name, clip, mgca, settings):
    started = time.perf_counter()
    pairs = open_pairs(clip, settings.workers, device)
    checkpoint, model = checkpoint_of(name), Path("models") / name
    decoder, history = train(settings, mgca, pairs.images, pairs.bank, pairs.texts, checkpoint, device)
    if distributed.joined().rank == 0:
        decoder.save(model)
        pd.DataFrame(history).round(6).to_csv(model / "history.csv", index=False)
        seconds = round(time.perf_counter() - started, 1)  # of this process, if a killed one went before
        parameters = params.flatten({"mgca": mgca, "train": settings})
        text = json.dumps({"seed": settings.seed, "seconds": seconds, "parameters": parameters}, indent=1)
        (model / "training.json").write_text(text + "\n")
    return checkpoint


@torch.no_grad()
def explain(decoder, pairs, mgca, count=16):
    """What the losses pick in the first pairs, each with a prompt drawn for it, to look at.

    decoder: Decoder on the CPU. pairs: Pairs. Returns (texts drawn: count str, of alignment.correspondences with maps as (count, h, w)).
    """
    bank = pairs.bank
    count = min(count, len(bank))
    drawn = bank.draw(np.arange(count), np.random.default_rng(0), caption_probability=0.0)
    pixels = decoder(pairs.images.first(count, "cpu").cpu())  # B, d, h, w
    found = alignment.correspondences(
        pixels.flatten(2).transpose(1, 2), features.as_tensor(pairs.texts[drawn]), torch.from_numpy(bank.subjects(drawn)), mgca
    )
    maps = {name: value.unflatten(1, pixels.shape[2:]) if value.ndim == 2 else value for name, value in found.items()}
    return [bank.texts[i] for i in drawn], maps


if __name__ == "__main__":  # under torchrun: the headline, over all of its processes
    try:
        params.enter_project()
        p = params.load()
        here = distributed.own_device(params.device(p.device), int(os.environ["LOCAL_RANK"]))
        distributed.join(here)
        _run(here, "mgca", p.clip, p.mgca, p.train.model_copy(update={"processes": distributed.joined().size}))
        distributed.leave()
    except params.ParamsError as error:
        sys.exit(f"{error}")
