"""Where batches come from: dense features encoded once, or images read from shards and encoded at each step."""

import collections
import itertools
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds

from ..clip import features
from ..data import captions, preparation, shards
from ..data.images import center_crop
from . import distributed

SHUFFLE = 2048  # raw samples among which a worker draws when images are streamed; it waits for as many, or for all that it has


@dataclass
class CachedImages:
    """Batches of dense features that were encoded once. array: (N, d, h, w) float16, row n of pair n."""

    array: np.ndarray

    def first(self, count, device):
        """Dense features of the first pairs, (count, d, h, w)."""
        return features.as_tensor(self.array[:count], device)

    def batches(self, batch):
        """Batches an epoch."""
        return len(self.array) // batch

    def epoch(self, seed, epoch, batch, skip, device):
        """Yields (rows (B,), this process' features (b, d, h, w) float32 on device, its images (b, H, W, 3) uint8 or None where they were
        encoded before), each pair at most once; skips `skip` batches."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.array))
        own = distributed.joined().share(batch)
        for index in range(skip, self.batches(batch)):
            rows = order[index * batch : (index + 1) * batch]
            yield rows, features.as_tensor(self.array[rows[own]], device), None


@dataclass
class StreamedImages:
    """Batches of images read from shards and encoded at each step, for data too large to cache."""

    clip: object  # FrozenCLIP
    paths: list  # of shards
    keys: list  # of the N pairs, as `prepare` found them
    size: int  # of the images, in pixels
    workers: int  # processes that decode

    def first(self, count, device):
        """As CachedImages.first."""
        return self.clip.encode_dense(np.stack(shards.first(self.paths, count, self.size)))

    def batches(self, batch):
        """Batches an epoch: as many as the process with the fewest pairs in its shards has."""
        size = distributed.joined().size
        of_shard = collections.Counter(key.split("/")[0] for key in self.keys)
        shares = [sum(of_shard[Path(path).stem] for path in self.paths[rank::size]) for rank in range(size)]
        return min(shares) // (batch // size)

    def epoch(self, seed, epoch, batch, skip, device):
        """As CachedImages.epoch; skipped batches are read but not encoded. Processes read shards of their own."""
        world = distributed.joined()
        own = self.paths[world.rank :: world.size]
        stream = wds.DataPipeline(
            wds.SimpleShardList([own[i] for i in np.random.default_rng((seed, epoch)).permutation(len(own))]),
            wds.split_by_worker,
            _samples,
            wds.shuffle(SHUFFLE, initial=SHUFFLE, rng=random.Random(hash((seed, epoch)))),
            partial(_decoded, rows_of={key: row for row, key in enumerate(self.keys)}, size=self.size),
        )
        loader = iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=min(self.workers, len(own))))
        chunks = zip(*[loader] * (batch // world.size), strict=False)  # as many pairs at a time; what is left over is dropped
        for index, chunk in enumerate(itertools.islice(chunks, self.batches(batch))):
            if index >= skip:
                rows, images = zip(*chunk, strict=True)
                images = np.stack(images)  # b, H, W, 3
                yield world.gather(torch.tensor(rows, device=device)).cpu().numpy(), self.clip.encode_dense(images), images


def _samples(stream):
    for shard in stream:
        yield from shards.read_samples(shard["url"])


def _decoded(samples, rows_of, size):
    for sample in samples:
        key = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        if key in rows_of:
            yield rows_of[key], center_crop(shards.decode(sample)[0], size)


class Pairs(NamedTuple):
    """What training reads."""

    images: CachedImages | StreamedImages  # of N pairs
    bank: captions.TextBank  # of the same pairs
    texts: np.ndarray  # (T, d), embeddings of bank.texts
    paths: list  # of the shards


def open_pairs(clip, workers, device, prepared="data/prepared", cache="data/features/train"):
    """What `prepare` and `encode` left, as Pairs. Images are cached features if `encode` kept them, the shards themselves if not.

    clip: params.Clip. workers: processes that decode images.
    """
    prepared, cache = Path(prepared), Path(cache)
    bank = captions.TextBank.load(prepared)
    paths = preparation.load_paths(prepared)
    array = features.open_cached(cache / "pairs.npy")
    if array is not None:
        images = CachedImages(array)
    else:
        from ..clip.frozen import FrozenCLIP  # open_clip takes seconds to import, and a run on cached features needs none

        images = StreamedImages(FrozenCLIP.open(clip, device), paths, preparation.load_keys(prepared), clip.image_size, workers)
    return Pairs(images, bank, features.open_cached(cache / "texts.npy"), paths)
