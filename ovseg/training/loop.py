"""Training the decoder. Every random choice is seeded by (seed, epoch) or (seed, step), so that a resumed run ends
with the weights of an uninterrupted one. All processes draw the same numbers: each knows the whole batch."""

import hashlib
import inspect
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import methods
from ..clip.encode import as_tensor
from ..data import preparation
from ..data.files import digest, syntax, write_json, write_whole
from . import distributed, outliers
from .batches import CachedImages, StreamedImages, open_pairs
from .objectives import Batch, Learner, negatives_of


def learning_rate(step, steps, warmup, peak):
    """Learning rate at a step: linear warm-up over `warmup` steps, then cosine decay to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(p, seed, pairs, checkpoint, device="cpu", labels=None):
    """Train a decoder. Returns (Learner on the CPU, history: a dict per step, seconds: including those of killed runs). p: Params.
    labels: supervised.Labels, used instead of texts. checkpoint: path; written every train.checkpoint_steps steps, and resumed
    from if its fingerprint matches. Every process of a group calls this function. Raises ValueError at a batch that does not suit
    pairs or processes, a damaged checkpoint, or vanished images; FloatingPointError if a loss or a gradient is not finite."""
    world, settings = distributed.joined(), p.train
    per_epoch = 0 if settings.batch % world.size else pairs.images.batches(settings.batch)
    if per_epoch == 0:
        more = f" and a multiple of {world.size}, the number of processes, each of which reads its own shards" if world.size > 1 else ""
        raise ValueError(f"train.batch = {settings.batch}: must be between 2 and {len(pairs.bank)} (the number of pairs){more}")
    left_out = 1 - per_epoch * settings.batch / len(pairs.bank)
    if world.rank == 0 and world.size > 1 and left_out > 0.02:
        print(f"an epoch leaves out {left_out:.1%} of the pairs: {world.size} processes share the shards; have a multiple of {world.size}")
    steps, warmup = max(1, round(settings.epochs * per_epoch)), round(settings.warmup_epochs * per_epoch)
    if settings.outliers:
        pairs = pairs._replace(images=CachedImages(outliers.overwrite(pairs.images.array, settings.outliers, seed)))
    torch.manual_seed(seed)
    learner = Learner(pairs.texts.shape[1], p.sections).to(device, memory_format=torch.channels_last)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    mark = fingerprint(p, seed, pairs, labels)
    start, history, before = resume(checkpoint, mark, learner, optimizer)
    started = time.perf_counter() - before
    forward = torch.nn.parallel.DistributedDataParallel(learner) if world.size > 1 else learner
    batches = _batches(pairs.images, seed, start, per_epoch, settings.batch, device)
    progress = tqdm(range(start, steps), "train", initial=start, total=steps, mininterval=2, disable=world.rank > 0)
    for step in progress:
        rate = learning_rate(step, steps, warmup, settings.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = forward(make_batch(*next(batches), pairs, labels, settings, (seed, step)))
        loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        (loss * world.size).backward()  # DDP averages gradients over processes; the sum is needed
        optimizer.step()
        gates = {f"gate{i}": block.gate for i, block in enumerate(learner.decoder.blocks)}
        values = {name: value.detach().clone() for name, value in {"loss": loss, **losses, **gates}.items()}
        history.append({"step": step, "epoch": step / per_epoch, "lr": rate, **values})
        if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == steps:  # the only GPU sync
            history = [{name: v.item() if isinstance(v, torch.Tensor) else v for name, v in row.items()} for row in history]
            if bad := next((row for row in history if not all(map(math.isfinite, row.values()))), None):  # gates are after the step
                where = f"at step {bad['step'] + 1}, epoch {bad['epoch']:.2f}"
                raise FloatingPointError(f"the loss or a gradient is not finite {where}: try a smaller train.lr")
            progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
            if world.rank == 0:
                state = {"fingerprint": mark, "step": step + 1, "learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"history": history, "seconds": time.perf_counter() - started}
                write_whole(checkpoint, lambda part, state=state: torch.save(state, part))
    return learner.cpu().eval(), history, time.perf_counter() - started


def resume(checkpoint, mark, learner, optimizer):
    """Load a checkpoint into learner and optimizer. Returns (step, history, seconds), or (0, [], 0.0) without one of this mark."""
    world, state = distributed.joined(), {}
    if world.rank == 0 and Path(checkpoint).is_file():
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many kinds of error at broken bytes
            raise ValueError(f"{checkpoint} is damaged: delete it to train from the start") from None
    state = world.from_first(state if state.get("fingerprint") == mark else {})  # other machines may see a file later
    if not state:
        return 0, [], 0.0
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    if world.rank == 0:
        print(f"resuming at step {state['step']}, from {checkpoint}")
    return state["step"], state["history"], state["seconds"]


def make_batch(rows, dense, encode, pairs, labels, settings, place):
    """The objectives.Batch of a step. rows, dense, encode: from CachedImages.epoch. place: (seed, step), the seed of all random draws."""
    (seed, step), device, world = place, dense.device, distributed.joined()
    batch = Batch(dense, settings.precision, np.random.default_rng([seed, 2, step]), world, encode=encode)
    if labels is not None:
        maps = torch.from_numpy(labels.maps[rows[world.share(len(rows))]]).to(device).long()
        return batch._replace(labels=maps, classes=labels.classes.to(device))
    text_ids = pairs.bank.draw(rows, np.random.default_rng([seed, 1, step]), settings.caption_probability)
    negative = negatives_of(pairs.bank, rows, text_ids, settings).to(device, non_blocking=True)
    return batch._replace(texts=as_tensor(pairs.texts[text_ids], device), negative=negative)


def _batches(images, seed, step, per_epoch, batch, device):
    """Yield the batches of consecutive epochs, starting at `step`."""
    for epoch in itertools.count(step // per_epoch):
        for of_step in images.epoch(seed, epoch, batch, step % per_epoch, device):
            yield of_step
            step += 1
        if missing := (epoch + 1) * per_epoch - step:
            raise ValueError(f"epoch {epoch} ends {missing} batches early: the shards have changed since `prepare`")


def fingerprint(p, seed, pairs, labels=None):
    """{name: hex digest, or version} of all that a training depends on: parameters, data, torch, and each file of training/, of p's methods
    and of what these import from methods/. It leaves out the numbers of workers and processes, which change the order of streamed
    images only."""
    sections = {name: section.model_dump(exclude={"labels"}) for name, section in p.sections.items()}
    settings = p.train.model_dump(exclude={"seeds", "checkpoint_steps", "workers", "processes", "timeout_minutes"})
    folders = ("training/*.py", *(("clip/*.py", "data/*.py") if isinstance(pairs.images, StreamedImages) else ("data/captions.py",)))
    files = [file for folder in folders for file in Path(__file__).parents[1].glob(folder)]
    for module in map(methods.module, p.sections):
        imported = [value if inspect.ismodule(value) else inspect.getmodule(value) for value in vars(module).values()]
        files += [Path(used.__file__) for used in (module, *imported) if getattr(used, "__package__", "") == module.__package__]
    data, bank = hashlib.sha256(json.dumps(pairs.made_of).encode()), pairs.bank
    for array in (bank.caption_index, bank.noun_index, bank.offset, *([labels.maps, labels.classes.numpy()] if labels else [])):
        data.update(array)
    marks = {"parameters": digest([seed, settings, sections]), "data": data.hexdigest(), "torch": str(torch.__version__)}
    return marks | {f"{file.parent.name}/{file.name}": digest(syntax(file)) for file in sorted(set(files))}


def train_into(folder, seed, p, labels_of, device):
    """Train a decoder into a folder, unless it is there with the current fingerprint. Returns whether anything was
    trained. Writes decoder.safetensors, objective.safetensors if the method has parameters, history.csv and, last,
    training.json. labels_of: function of (shard paths, keys, size) that reads supervised.Labels, or None. Uses
    p.train.processes processes: those of the current process group, all of which call this function, or else new ones."""
    folder, world = Path(folder), distributed.joined()
    if p.train.processes > world.size:
        return distributed.launch(p.train.processes, p.train.timeout_minutes, train_into, folder, seed, p, labels_of, device)
    if world.size == 1 and device.type == "cpu":
        torch.set_num_threads(p.train.threads)
    pairs, labels = open_pairs(p, device), None
    if labels_of is not None:
        side = 2 * pairs.images.first(1, device).shape[-1]  # of the decoder's output
        labels = labels_of(pairs.paths, preparation.load_keys("data/prepared"), side)
    mark, file = fingerprint(p, seed, pairs, labels), folder / "training.json"
    about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    before = about.get("made_with", {})
    if world.from_first(before == mark and all((folder / name).is_file() for name in about["files"])):
        return False
    if world.rank == 0 and (changed := [name for name in {**before, **mark} if before and before.get(name) != mark.get(name)]):
        print(f"{folder} is trained again: changed are {', '.join(changed)}", flush=True)
    checkpoint = Path("runs/checkpoints") / folder.with_name(f"{folder.name}.pt")
    learner, history, seconds = train(p, seed, pairs, checkpoint, device, labels)
    if world.rank == 0:
        file.unlink(missing_ok=True)
        learner.save(folder)
        write_whole(folder / "history.csv", lambda part: pd.DataFrame(history).round(6).to_csv(part, index=False))
        about = {"seed": seed, "seconds": round(seconds, 1), "made_with": mark}
        about["files"] = sorted(path.name for path in folder.glob("*.safetensors"))
        about["weights"] = sum(parameter.numel() for parameter in learner.parameters())
        about["parameters"] = {name: section.model_dump() for name, section in p.training.items()}
        write_json(file, about)
        checkpoint.unlink()
    return True
