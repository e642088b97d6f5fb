"""Training the decoder: the loop, the schedule, where batches come from, checkpoints that survive being killed.

Every random choice is drawn from (seed, epoch) or (seed, step) rather than from a running generator, so that a
checkpoint is just the step, the weights and the optimiser, and a resumed run ends with the very weights that an
uninterrupted one has. Several processes draw the same numbers, so that each knows the whole batch and encodes its part.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import params
from ..clip import features
from . import alignment, distributed
from . import decoder as decoding
from .batches import open_pairs
from .checkpoint import Checkpoint, fingerprint


def learning_rate(step, steps, warmup, peak):
    """Learning rate of a step: linear warm-up over `warmup` steps, then a cosine down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(decoder, settings):
    """Adam with a weight decay as the paper says, or AdamW. settings: params.Train."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(decoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


class Trained(NamedTuple):
    """A Decoder on the CPU; history: a dict per step with step, epoch, lr, loss, a loss for each level, and both gates; seconds of
    training, those of killed runs before it included."""

    decoder: decoding.Decoder
    history: list
    seconds: float


def train(settings, seed, mgca, images, bank, texts, checkpoint, device="cpu"):
    """Train a decoder. Returns Trained.

    settings, mgca: params' Train and Mgca. seed: of weights, batches and texts.
    images: CachedImages or StreamedImages of N pairs. bank: TextBank of the
    same pairs. texts: (T, d) embeddings of bank.texts, a batch of which is read at a time. checkpoint: path; if a killed run
    of the same settings, data and code left it, training goes on from there. It is still there at the end: remove it once the
    weights are saved.
    In a process group every process calls this, and gets the same decoder; the first one writes the checkpoints.
    Raises ValueError when the batch is larger than the data, or does not divide among the processes.
    """
    world = distributed.joined()
    if settings.batch > len(bank):
        raise ValueError(f"train.batch = {settings.batch}: allowed are 2..{len(bank)}, the number of pairs")
    if settings.batch % world.size:
        raise ValueError(f"train.batch = {settings.batch}: allowed are multiples of the number of processes, {world.size}")
    torch.manual_seed(seed)
    decoder = decoding.Decoder(images.width).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(decoder, settings)
    per_epoch = images.batches(settings.batch)
    if per_epoch == 0:
        raise ValueError(
            f"train.batch = {settings.batch}: some of {world.size} processes have fewer pairs in their shards; use more shards"
        )
    steps = max(1, round(settings.epochs * per_epoch))
    warmup = round(settings.warmup_epochs * per_epoch)
    state = Checkpoint(checkpoint, fingerprint(settings, seed, mgca, bank, texts, images))
    step, history, before = state.restore(decoder, optimizer)
    started = time.perf_counter() - before
    forward = torch.nn.parallel.DistributedDataParallel(decoder) if world.size > 1 else decoder
    device_type = torch.device(device).type
    progress = tqdm(total=steps, initial=step, desc="train", mininterval=2, disable=world.rank > 0)
    while step < steps:
        epoch, skip = divmod(step, per_epoch)
        for rows, dense in images.epoch(seed, epoch, settings.batch, skip, device):
            text_ids = bank.draw(rows, np.random.default_rng([seed, 1, step]), settings.caption_probability)
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
                    state.save(step, decoder, optimizer, history, time.perf_counter() - started)
            if step == steps:
                break
        if step < min(steps, (epoch + 1) * per_epoch):
            raise ValueError(f"epoch {epoch} ends {(epoch + 1) * per_epoch - step} batches early: the shards have changed since `prepare`")
    progress.close()
    return Trained(decoder.cpu().eval(), history, time.perf_counter() - started)


def _numbers(history):
    """The history with tensors turned into floats: once a checkpoint, so that a GPU is not waited for at every step."""
    return [{name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()} for row in history]


def run(folder, seed, clip, mgca, settings, device):
    """Train a decoder into a folder, in settings.processes processes of this machine, unless it is there already.

    folder: e.g. models/mgca/seeds/0; it gets decoder.safetensors, history.csv (a row a step, see `train`) and, last, training.json
    (seed, seconds, fingerprint, parameters). clip, mgca, settings: params' Clip, Mgca, Train. Returns whether anything was trained: a
    finished training of the same parameters, data and code is kept as it is.
    """
    if settings.processes > 1:
        params.processes(settings.processes, device)
        before = _stamp(folder)
        distributed.launch(settings.processes, run_in_group, device, folder, seed, clip, mgca, settings)
        return _stamp(folder) != before
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    return run_in_group(device, folder, seed, clip, mgca, settings)


def _stamp(folder):
    """When a training was finished; None if it was not."""
    file = Path(folder) / "training.json"
    return file.stat().st_mtime_ns if file.is_file() else None


def run_in_group(device, folder, seed, clip, mgca, settings):
    """`run`, in this process of a group that each of its processes has joined, or in this process alone."""
    folder, world = Path(folder), distributed.joined()
    pairs = open_pairs(clip, settings.workers, device)
    mark = fingerprint(settings, seed, mgca, pairs.bank, pairs.texts, pairs.images)
    file, checkpoint = folder / "training.json", Path("runs/checkpoints") / folder.with_suffix(".pt")
    finished = file.is_file() and (folder / decoding.WEIGHTS).is_file() and json.loads(file.read_text())["fingerprint"] == mark
    if world.from_first(finished):
        return False
    trained = train(settings, seed, mgca, pairs.images, pairs.bank, pairs.texts, checkpoint, device)
    if world.rank == 0:
        file.unlink(missing_ok=True)
        trained.decoder.save(folder)
        pd.DataFrame(trained.history).round(6).to_csv(folder / "history.csv", index=False)
        parameters = params.flatten({"mgca": mgca, "train": settings})
        found = {"seed": seed, "seconds": round(trained.seconds, 1), "fingerprint": mark, "parameters": parameters}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, file)
        checkpoint.unlink()
    return True


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

