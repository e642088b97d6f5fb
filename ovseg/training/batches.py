"""Sources of batches: dense features encoded once, or images read from shards and encoded at each step."""

import itertools
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds

from ..clip import encode
from ..data import captions, preparation, shards
from ..data.images import center_crop
from . import curation, distributed

SHUFFLE = 2048  # raw samples in each worker's shuffle buffer; it is filled before any is drawn
SHUFFLE_BYTES = 1 << 28  # fewer samples, if so many are larger on average
READERS = 8  # threads that each read a batch of cached features ahead: one alone waits for the disk at each row


class CachedImages(NamedTuple):
    """Batches of dense features that were encoded once. array: (N, d, h, w) float16; row n belongs to pair n."""

    array: np.ndarray

    def first(self, count, device):
        """Dense features of the first `count` pairs, (count, d, h, w)."""
        return encode.as_tensor(self.array[:count], device)

    def batches(self, batch):
        """Number of batches per epoch."""
        return len(self.array) // batch

    def epoch(self, seed, epoch, batch, skip, device):
        """Yield (rows (B,), this process' features (b, d, h, w) float32, encode of objectives.Batch), without the first `skip` batches."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.array))[: self.batches(batch) * batch]
        batches = order.reshape(-1, batch)[skip:]
        own = batches[:, distributed.joined().share(batch)]
        with ThreadPoolExecutor(READERS) as threads:
            reads = [threads.submit(self.array.__getitem__, ahead) for ahead in own[:READERS]]
            for rows, ahead in itertools.zip_longest(batches, own[READERS:]):
                reads += [threads.submit(self.array.__getitem__, ahead)] if ahead is not None else []
                yield rows, encode.as_tensor(reads.pop(0).result(), device), None


class StreamedImages(NamedTuple):
    """Batches of images read from shards and encoded at each step, for data too large to cache."""

    clip: object  # FrozenCLIP
    paths: list  # of shards
    keys: list  # of the N pairs that `prepare` found
    size: int  # side of an image in pixels
    workers: int  # number of decoding processes

    def first(self, count, device):
        return self.clip.encode_dense(np.stack(shards.first_images(self.paths, count, self.size)))

    def batches(self, batch):
        """Number of batches per epoch, limited by the process whose shards hold the fewest pairs."""
        size = distributed.joined().size
        of_shard = Counter(key.split("/")[0] for key in self.keys)
        shares = [sum(of_shard[Path(path).stem] for path in self.paths[rank::size]) for rank in range(size)]
        return min(shares) // (batch // size)

    def epoch(self, seed, epoch, batch, skip, device):
        """See CachedImages.epoch. Each process reads its own shards. Skipped batches are read but not encoded."""
        world = distributed.joined()
        share = batch // world.size
        own = np.random.default_rng((seed, epoch)).permutation(self.paths[world.rank :: world.size]).tolist()
        buffer = min(SHUFFLE, 1 + SHUFFLE_BYTES * len(self.keys) // sum(Path(path).stat().st_size for path in self.paths))
        shuffle = wds.shuffle(buffer, initial=buffer, rng=random.Random(hash((seed, epoch))))
        decode = partial(_decoded, shuffle=shuffle, rows_of={key: row for row, key in enumerate(self.keys)}, size=self.size)
        workers = min(self.workers, len(own))
        chunk = wds.batched(max(1, share // max(1, workers)), list)  # one of each worker is this process' share of a batch
        stream = wds.DataPipeline(wds.SimpleShardList(own), wds.split_by_worker, decode, chunk, enumerate)
        # `tuple` leaves arrays as they are and sends them through pipes: tensors would take shared memory and an open file each.
        # With pin_memory, a thread receives them while the GPU works.
        options = {"collate_fn": tuple, "pin_memory": torch.device(device).type == "cuda"}
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers, **options)
        chunks = itertools.groupby(loader, lambda chunk: chunk[0])
        turns = (turn for _, of_workers in chunks for turn in itertools.zip_longest(*(pairs for _, pairs in of_workers)))
        pairs = (pair for turn in turns for pair in turn if pair)  # the first pair of each worker's chunk, then the second, ...
        shares = zip(*[pairs] * share, strict=False)  # an incomplete last batch is dropped
        for of_batch in itertools.islice(shares, skip, self.batches(batch)):
            rows, images = zip(*of_batch, strict=True)
            encode = partial(self.clip.encode_dense, np.stack(images))  # b, H, W, 3
            yield world.gather(torch.tensor(rows, device=device)).cpu().numpy(), encode(), encode


def _decoded(urls, shuffle, rows_of, size):
    """Yield (row, image) of the pairs in shards, {"url": path}, in the order of `shuffle`."""
    for sample in shuffle(sample for shard in urls for sample in shards.read_samples(shard["url"])):
        key = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        if key in rows_of:
            yield rows_of[key], center_crop(shards.decode_image(sample), size)


class Pairs(NamedTuple):
    """The training data."""

    images: CachedImages | StreamedImages
    bank: captions.TextBank  # texts of the same N pairs
    texts: np.ndarray  # (T, d), embeddings of bank.texts
    paths: list  # shard paths
    made_of: dict  # JSON values that tell images and texts from those of other data


def open_pairs(p, device, prepared="data/prepared", cache="data/features/train"):
    """Open the output of `prepare` and `encode` as Pairs: features if `encode` kept them, else images. Texts are curated if train.texts is.
    p: Params. Raises FileNotFoundError if the embeddings are missing that this needs."""
    cache, paths = Path(cache), preparation.load_paths(prepared)
    array = encode.open_cached(cache / "pairs.npy")
    made_of = {"texts": json.loads((cache / "texts.json").read_text(encoding="utf-8"))["sha256"]}
    if array is not None:
        images = CachedImages(array)
        made_of["images"] = json.loads((cache / "pairs.json").read_text(encoding="utf-8"))["sha256"]
    else:
        from ..clip.frozen import FrozenCLIP  # slow import, not needed with cached features

        keys = preparation.load_keys(prepared)
        images = StreamedImages(FrozenCLIP.open(p.clip, device), paths, keys, p.clip.image_size, p.train.workers)
        sizes = [Path(path).stat().st_size for path in paths]
        made_of |= {"images": encode.digest([keys, sizes]), "clip": p.clip.model_dump(exclude={"batch", "cache_images"})}
    bank, texts = captions.TextBank.load(prepared), encode.open_cached(cache / "texts.npy")
    if p.train.texts == "curated":
        if (whole := encode.open_cached(cache / "images.npy")) is None:
            raise FileNotFoundError(f"train.texts = curated: {cache / 'images.npy'} is missing: run `dvc repro encode`")
        bank = distributed.joined().from_first(curation.curate(bank, texts, whole, p.cocu, device))
    return Pairs(images, bank, texts, paths, made_of)
