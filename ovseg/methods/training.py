"""Training the decoder: the learning rate schedule, the training loop, and training into a folder.

Every random choice is seeded by (seed, epoch) or (seed, step), not drawn from a running generator. A checkpoint therefore needs only the
step, the weights and the optimizer state, and a resumed run ends with the weights of an uninterrupted one. All processes draw the same
numbers: each knows the whole batch and encodes its share.
"""

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import params
from ..clip import features
from ..data import preparation
from . import contrast, distributed, mgca, objectives, preemption, supervised
from .batches import open_pairs
from .checkpoint import fingerprint, restore_checkpoint, save_checkpoint, write_whole
from .decoder import Decoder


def learning_rate(step, steps, warmup, peak):
    """Learning rate at a step: linear warm-up over `warmup` steps, then cosine decay to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(module, settings):
    """Adam with weight decay, as in the paper, or AdamW. settings: schema.Train."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def train(settings, seed, sections, images, bank, texts, checkpoint, device="cpu", labels=None):
    """Train a decoder. Returns (objectives.Learner on the CPU, history, seconds).

    settings: schema.Train. sections: {method: its section}, from Params.sections; the methods to train with. seed: seed of weights,
    batches and texts. images, bank, texts: as in Pairs. checkpoint: path. Training resumes from it if its fingerprint matches. It is
    not deleted at the end: remove it once the weights are saved.
    labels: supervised.Labels for that method, which uses them instead of texts. history: a dict per step with step, epoch, lr, loss,
    the losses of the methods, and both gates. seconds: total training time, including runs that were killed. In a process group,
    every process calls this function and gets the same decoder; the first one writes checkpoints.
    Raises ValueError if there are too few pairs for a batch, if the batch does not divide among the processes, or if there are fewer
    images than `prepare` found; FloatingPointError if the loss or a gradient is not finite. SIGTERM ends training with
    preemption.EXIT_CODE after the current step, for which a checkpoint is written. In a process group only the first process
    acts on SIGTERM, so it must receive the signal, as it does if a cluster signals all processes.
    """
    world = distributed.joined()
    if settings.batch % world.size:
        raise ValueError(f"train.batch = {settings.batch}: allowed are multiples of the number of processes, {world.size}")
    per_epoch = images.batches(settings.batch)
    if per_epoch == 0:
        more = f", and {world.size} processes that all have enough pairs in their shards; use more shards" if world.size > 1 else ""
        raise ValueError(f"train.batch = {settings.batch}: allowed are 2..{len(bank)}, the number of pairs{more}")
    steps = max(1, round(settings.epochs * per_epoch))
    warmup = round(settings.warmup_epochs * per_epoch)
    torch.manual_seed(seed)
    learner = objectives.Learner(Decoder(texts.shape[1]), sections).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(learner, settings)
    mark = fingerprint(settings, seed, sections, images, bank, texts, labels)
    start, history, before = restore_checkpoint(checkpoint, mark, learner, optimizer)
    started = time.perf_counter() - before
    forward = torch.nn.parallel.DistributedDataParallel(learner) if world.size > 1 else learner
    batches = _batches(images, seed, start, per_epoch, settings.batch, device)
    drawn = {}  # the pairs of each step since the last checkpoint
    progress = tqdm(range(start, steps), "train", initial=start, total=steps, mininterval=2, disable=world.rank > 0)
    with preemption.noted() as signals:
        for step in progress:
            rows, dense, pixels = next(batches)  # B; b, d, h, w; b, H, W, 3 or None
            drawn[step] = rows
            lr = learning_rate(step, steps, warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = make_batch(dense, rows, bank, texts, labels, settings, (seed, step), world)
            if pixels is not None:
                batch = batch._replace(images=pixels, clip=images.clip)
            parts = forward(batch)
            loss = sum(parts.values())
            optimizer.zero_grad(set_to_none=True)
            (loss * world.size).backward()  # DDP averages gradients over processes; the sum is needed
            optimizer.step()
            gates = {f"gate{i}": block.gate for i, block in enumerate(learner.decoder.blocks)}
            values = {name: value.detach().clone() for name, value in {"loss": loss, **parts, **gates}.items()}
            history.append({"step": step, "epoch": step / per_epoch, "lr": lr, **values})
            preempted = signals and world.rank == 0  # the others go on: the first needs them to finish its step
            if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == steps or preempted:  # the only GPU sync
                history = [{name: v.item() if isinstance(v, torch.Tensor) else v for name, v in row.items()} for row in history]
                if bad := next((row for row in history if not all(map(math.isfinite, row.values()))), None):  # gates are after the step
                    where = f"at step {bad['step'] + 1}, epoch {bad['epoch']:.2f}"
                    what = f"the loss is {bad['loss']}" if not math.isfinite(bad["loss"]) else "the gradient is not finite"
                    pairs = _written(images, drawn[bad["step"]], checkpoint)
                    raise FloatingPointError(f"{what} {where}: try a smaller train.lr; the last checkpoint is from before; {pairs}")
                drawn.clear()
                progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
                if world.rank == 0:
                    save_checkpoint(checkpoint, mark, step + 1, learner, optimizer, history, time.perf_counter() - started)
                if preempted:
                    print(f"SIGTERM: ended after step {step + 1} of {steps}, which {checkpoint} holds; run again to go on")
                    raise SystemExit(preemption.EXIT_CODE)
    return learner.cpu().eval(), history, time.perf_counter() - started


def make_batch(dense, rows, bank, texts, labels, settings, place, world):
    """Build the objectives.Batch of a step. rows: indices of the B pairs. place: (seed, step), the seed of all random draws. labels:
    supervised.Labels, whose maps and classes replace the texts, or None."""
    (seed, step), device = place, dense.device
    given = {"texts": None, "negative": None, "labels": None, "classes": None}
    if labels is None:
        text_ids = bank.draw(rows, np.random.default_rng([seed, 1, step]), settings.caption_probability)
        subjects = torch.from_numpy(bank.subjects(text_ids)).to(device, non_blocking=True)
        given["texts"] = features.as_tensor(texts[text_ids], device)  # B, d
        given["negative"] = contrast.negatives(subjects, settings.mask_equal_texts)
    else:
        given["labels"] = torch.from_numpy(labels.maps[rows[world.share(len(rows))]]).to(device).long()  # b, 2h, 2w
        given["classes"] = labels.classes.to(device)
    return objectives.Batch(dense, **given, precision=settings.precision, random=np.random.default_rng([seed, 2, step]), world=world)


def _written(images, rows, checkpoint):
    """Write the keys of the pairs in rows to a file and return a sentence that names it. Without known keys, row numbers are written."""
    keys = getattr(images, "keys", None)
    if keys is None:
        keys = preparation.load_keys("data/prepared") if Path("data/prepared/pairs.txt").is_file() else range(len(images.array))
    named, file = [str(keys[row]) for row in rows], Path(f"{checkpoint}.pairs.txt")
    if distributed.joined().rank == 0:
        write_whole(file, lambda part: part.write_text("\n".join(named) + "\n"))
    return f"the {len(named)} pairs of its batch, {named[0]} and so on, are in {file}"


def _batches(images, seed, step, per_epoch, batch, device):
    """Yield the batches of consecutive epochs, starting at `step`."""
    first, skip = divmod(step, per_epoch)
    for epoch in itertools.count(first):
        count = skip
        for found in images.epoch(seed, epoch, batch, skip, device):
            yield found
            count += 1
        if count < per_epoch:
            raise ValueError(f"epoch {epoch} ends {per_epoch - count} batches early: the shards have changed since `prepare`")
        skip = 0


def train_into(folder, seed, clip, sections, settings, source, device):
    """Train a decoder into a folder, unless it is already there. Returns whether anything was trained.

    folder: e.g. models/mgca/seeds/0. Files written: decoder.safetensors, objective.safetensors if the method has parameters, history.csv
    (one row per step, see `train`) and, last, training.json (seed, seconds, fingerprint, names of the weight files, number of trained
    weights, parameters). The folder is left unchanged if training.json has the current fingerprint and all its weight files exist.
    clip, settings: schema.Clip, schema.Train. sections: see `train`. source: supervised.Source for that method, else None. Uses
    settings.processes processes: those of the current process group, all of which must call this function, or else new processes on
    this machine.
    """
    folder, world = Path(folder), distributed.joined()
    if settings.processes > world.size:
        params.processes(settings.processes, device)
        return distributed.launch(settings.processes, train_into, folder, seed, clip, sections, settings, source, device)
    if world.size == 1 and device.type == "cpu":
        torch.set_num_threads(settings.threads)
    pairs = open_pairs(clip, settings.workers, device)
    of_pairs, labels = (pairs.images, pairs.bank, pairs.texts), None
    if settings.method == "supervised":
        side = 2 * pairs.images.first(1, device).shape[-1]  # side of the decoder's output
        labels = supervised.open_labels(source, pairs.paths, preparation.load_keys("data/prepared"), side)
    mark, file = fingerprint(settings, seed, sections, *of_pairs, labels), folder / "training.json"
    checkpoint = Path("runs/checkpoints") / folder.with_name(f"{folder.name}.pt")
    found = json.loads(file.read_text()) if file.is_file() else {}
    kept = world.from_first(found.get("fingerprint") == mark and all((folder / name).is_file() for name in found["files"]))
    if not kept:
        learner, history, seconds = train(settings, seed, sections, *of_pairs, checkpoint, device, labels)
    if not kept and world.rank == 0:
        file.unlink(missing_ok=True)
        learner.decoder.save(folder)
        objectives.save_objectives(learner.objectives, folder)
        write_whole(folder / "history.csv", lambda part: pd.DataFrame(history).round(6).to_csv(part, index=False))
        parameters = params.flatten({name: section for name, section in sections.items() if section} | {"train": settings})
        weights = sum(parameter.numel() for parameter in learner.parameters())
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        found = {"seed": seed, "seconds": round(seconds, 1), "fingerprint": mark, "files": files, "weights": weights}
        found["parameters"] = parameters
        write_whole(file, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    if world.rank == 0:
        checkpoint.unlink(missing_ok=True)
    return not kept


@torch.no_grad()
def explain(decoder, pairs, p, count=16):
    """Pixels and regions that MGCA's losses select in the first pairs, each with a randomly drawn prompt, for visualisation.

    decoder: Decoder on the CPU. pairs: Pairs. p: Params. Returns (list of `count` texts drawn, the dict of mgca.correspondences with
    maps as (count, h, w)).
    """
    bank = pairs.bank
    drawn = bank.draw(np.arange(min(count, len(bank))), np.random.default_rng(0), caption_probability=0.0)
    pixels = decoder(pairs.images.first(len(drawn), "cpu").cpu())  # B, d, h, w
    negative = contrast.negatives(torch.from_numpy(bank.subjects(drawn)), p.train.mask_equal_texts)
    found = mgca.correspondences(pixels.flatten(2).transpose(1, 2), features.as_tensor(pairs.texts[drawn]), negative, p.mgca)
    maps = {name: value.unflatten(1, pixels.shape[2:]) if value.ndim == 2 else value for name, value in found.items()}
    return [bank.texts[i] for i in drawn], maps
