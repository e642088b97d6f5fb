"""Training the decoder: the loop, the schedule, where batches come from, checkpoints that survive being killed.

Every random choice is drawn from (seed, epoch) or (seed, step) rather than from a running generator, so that a
checkpoint is just the step, the weights and the optimiser, and a resumed run ends with the very weights that an
uninterrupted one has.
"""

import hashlib
import itertools
import json
import math
import os
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from tqdm import tqdm

from . import alignment, features, shards
from . import decoder as decoding
from .images import square

SHUFFLE = 2048  # raw samples that a worker mixes when images are streamed


@dataclass
class CachedImages:
    """Batches of dense features that were encoded once. array: (N, d, h, w) float16, row n of pair n."""

    array: np.ndarray

    @property
    def width(self):
        return self.array.shape[1]

    def first(self, count, device):
        """Dense features of the first pairs, (count, d, h, w)."""
        return features.as_tensor(self.array[:count], device)

    def epoch(self, seed, epoch, batch, skip, device):
        """Yields (rows (B,), features (B, d, h, w) float32 on device), each pair at most once; skips `skip` batches."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.array))
        for index in range(skip, len(order) // batch):
            rows = order[index * batch : (index + 1) * batch]
            yield rows, features.as_tensor(self.array[rows], device)


@dataclass
class StreamedImages:
    """Batches of images read from shards and encoded at each step, for data too large to cache.

    clip: FrozenCLIP. paths: shards. keys: N keys of pairs, as `prepare` found them. size: pixels. workers: processes
    that decode.
    """

    clip: object
    paths: list
    keys: list
    size: int
    workers: int

    @property
    def width(self):
        return self.clip.width

    def first(self, count, device):
        """As CachedImages.first."""
        return self.clip.encode_dense(np.stack(shards.first(self.paths, count, self.size)))

    def epoch(self, seed, epoch, batch, skip, device):
        """As CachedImages.epoch; skipped batches are read but not encoded."""
        rows_of = {key: row for row, key in enumerate(self.keys)}
        paths = [self.paths[i] for i in np.random.default_rng([seed, epoch]).permutation(len(self.paths))]
        stream = wds.DataPipeline(
            wds.SimpleShardList(paths),
            wds.split_by_node,
            wds.split_by_worker,
            _samples,
            wds.shuffle(SHUFFLE, rng=random.Random(hash((seed, epoch)))),
            partial(_decoded, rows_of=rows_of, size=self.size),
        )
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=min(self.workers, len(paths)))
        for index, chunk in enumerate(_chunks(loader, batch)):
            if index >= skip:
                rows, images = zip(*chunk, strict=True)
                yield np.array(rows), self.clip.encode_dense(np.stack(images))


def _samples(stream):
    for shard in stream:
        yield from shards.read(shard["url"])


def _decoded(samples, rows_of, size):
    for sample in samples:
        key = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        if key in rows_of:
            yield rows_of[key], square(shards.decode(sample)[0], size)


def _chunks(items, size):
    """Full lists of `size` items; what is left over is dropped."""
    items = iter(items)
    while len(chunk := list(itertools.islice(items, size))) == size:
        yield chunk


def rate(step, steps, warmup, peak):
    """Learning rate of a step: linear warm-up over `warmup` steps, then a cosine down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(decoder, settings):
    """Adam with a weight decay as the paper says, or AdamW. settings: params.Train."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(decoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def train(settings, mgca, images, bank, texts, checkpoint, device="cpu"):
    """Train a decoder. Returns (Decoder on the CPU, history).

    settings: params.Train; mgca: params.Mgca. images: CachedImages or StreamedImages of N pairs. bank: TextBank of the
    same pairs. texts: (T, d) embeddings of bank.texts. checkpoint: path; if a killed run of the same settings, data and
    code left it, training goes on from there. It is still there at the end: remove it once the weights are saved.
    history: a dict per step with step, epoch, lr, loss, a loss for each level, and both gates.
    Raises ValueError when the batch is larger than the data.
    """
    if settings.batch > len(bank):
        raise ValueError(f"train.batch = {settings.batch}: allowed are 2..{len(bank)}, the number of pairs")
    torch.manual_seed(settings.seed)
    decoder = decoding.Decoder(images.width).to(device)
    optimizer = make_optimizer(decoder, settings)
    per_epoch = len(bank) // settings.batch
    steps = max(1, round(settings.epochs * per_epoch))
    warmup = round(settings.warmup_epochs * per_epoch)
    state = Checkpoint(checkpoint, fingerprint(settings, mgca, bank, texts, images))
    step, history = state.restore(decoder, optimizer)
    texts = torch.from_numpy(np.array(texts)).to(device).float()
    device_type = torch.device(device).type
    progress = tqdm(total=steps, initial=step, desc="train", mininterval=2)
    while step < steps:
        epoch, skip = divmod(step, per_epoch)
        for rows, dense in images.epoch(settings.seed, epoch, settings.batch, skip, device):
            text_ids = bank.draw(rows, np.random.default_rng([settings.seed, 1, step]), settings.caption_probability)
            subjects = torch.from_numpy(bank.subjects(text_ids)).to(device)
            lr = rate(step, steps, warmup, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device_type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                pixels = decoder(dense)  # B, d, 2h, 2w
            pixels = pixels.float().flatten(2).transpose(1, 2)  # B, L, d
            levels = alignment.losses(pixels, texts[torch.from_numpy(text_ids).to(device)], subjects, mgca)
            loss = sum(levels.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
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
    """What a checkpoint must agree on with the run that resumes it: parameters, texts, image features and code."""
    digest = hashlib.sha256(json.dumps([settings.model_dump(exclude={"checkpoint_steps", "workers"}), mgca.model_dump()]).encode())
    for code in (__file__, alignment.__file__, decoding.__file__):
        digest.update(Path(code).read_bytes())
    digest.update(np.ascontiguousarray(texts))
    for array in (bank.caption, bank.noun, bank.offset):
        digest.update(array)
    if isinstance(images, CachedImages):  # a sample of rows tells other features apart
        digest.update(np.ascontiguousarray(images.array[:: max(1, len(images.array) // 64)]))
    else:
        digest.update("\n".join([str(images.size), *images.keys]).encode())
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
        if not self.path.is_file():
            return 0, []
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            return 0, []
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"resuming at step {state['step']}, from {self.path}")
        return state["step"], state["history"]


def open_images(folder, paths, keys, clip, workers, device):
    """The images of the pairs: cached features if `encode` kept them in folder, the shards themselves if not.

    paths: shards; keys: N keys of pairs; clip: params.Clip; workers: processes that decode images.
    """
    array = features.read(Path(folder) / "pairs.npy")
    if array is not None:
        return CachedImages(array)
    from .clip import FrozenCLIP  # open_clip takes seconds to import, and a run on cached features needs none

    return StreamedImages(FrozenCLIP.open(clip, device), paths, keys, clip.image_size, workers)


@torch.no_grad()
def explain(decoder, images, bank, texts, mgca, count=16):
    """What the losses pick in the first pairs, each with a prompt drawn for it, to look at.

    decoder: Decoder on the CPU. Returns (texts drawn: count str, of alignment.correspondences with maps as (count, h, w)).
    """
    count = min(count, len(bank))
    drawn = bank.draw(np.arange(count), np.random.default_rng(0), caption_probability=0.0)
    pixels = decoder(images.first(count, "cpu").cpu())  # B, d, h, w
    found = alignment.correspondences(
        pixels.flatten(2).transpose(1, 2), features.as_tensor(texts[drawn]), torch.from_numpy(bank.subjects(drawn)), mgca
    )
    maps = {name: value.unflatten(1, pixels.shape[2:]) if value.ndim == 2 else value for name, value in found.items()}
    return [bank.texts[i] for i in drawn], maps
