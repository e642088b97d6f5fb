"""What tests of training and of methods share: settings, random pairs as cached features, pairs in shards, a project's folder."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from tiny import P, bank_of

from ovseg.data import shards
from ovseg.training.batches import CachedImages, Pairs, StreamedImages
from ovseg.training.decoder import Decoder
from ovseg.training.distributed import World
from ovseg.training.objectives import Batch, negatives

CPU = torch.device("cpu")
WIDTH, PAIRS, BATCH = 16, 24, 8
TRAIN = {"batch": BATCH, "epochs": 3.0, "warmup_epochs": 0.5, "precision": "float32", "checkpoint_steps": 2, "lr": 0.01}
TRAIN |= {"workers": 0, "threads": 1, "processes": 1, "timeout_minutes": 5}
CAPTIONS = ["a dog and a cat.", "the sea", "a boat on the sea", "running quickly", "a tree, a house and the sky", "a cat."]


def changed(sections=None, **values):
    """Params of a small training. values: of `train`. sections: {method: its section}."""
    return P.model_copy(update={"train": P.train.model_copy(update=TRAIN | values)} | (sections or {}))


def make_pairs(**values):
    """Pairs of random cached features, captions and embeddings of texts, the same in every process. values replace fields."""
    bank, rng = bank_of([CAPTIONS[n % len(CAPTIONS)] for n in range(PAIRS)], ["a photo of a {}.", "many {}."]), np.random.default_rng(1)
    texts = rng.normal(size=(len(bank.texts), WIDTH)).astype(np.float16)
    return Pairs(CachedImages(rng.normal(size=(PAIRS, WIDTH, 4, 4)).astype(np.float16)), bank, texts, [], {})._replace(**values)


def batch_of(images=8, width=6, side=3, subjects=None):
    """(Batch, stages of a decoder, the decoder) in float64, random. subjects: see objectives.negatives."""
    rng = np.random.default_rng(0)
    decoder = Decoder(width).double()
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.5)
    dense, texts = (torch.from_numpy(rng.normal(size=shape)) for shape in ((images, width, side, side), (images, width)))
    negative = negatives(torch.tensor(subjects or range(images)), True)
    batch = Batch(dense, "float32", np.random.default_rng(0), World(), texts, negative)
    return batch, decoder.stages(dense), decoder


def info_nce_by_loops(logits, negative):
    """InfoNCE in both directions of (B, B) logits, their mean: a plain reference."""
    total, size = 0.0, len(logits)
    for i in range(size):
        rows = [logits[i, j].exp() for j in range(size) if j == i or negative[i, j]]
        columns = [logits[j, i].exp() for j in range(size) if j == i or negative[j, i]]
        total = total - (logits[i, i].exp() / sum(rows)).log() / (2 * size) - (logits[i, i].exp() / sum(columns)).log() / (2 * size)
    return total


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def same(first, second):
    """Whether two state dicts are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def write_array(path, array):
    """Write an array and the JSON file with its digest, as `encode` does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    Path(path).with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}))


def write_project():
    """Make the working directory a project's folder with make_pairs(), as `prepare` and `encode` leave it."""
    pairs = make_pairs()
    pairs.bank.save("data/prepared")
    Path("data/prepared/shards.txt").write_text("")
    write_array("data/features/train/pairs.npy", pairs.images.array)
    write_array("data/features/train/texts.npy", pairs.texts)


def write_tar(path, samples):
    """A tar of samples {key: {extension: PIL image or text}}. Returns its path as a string."""
    with wds.TarWriter(str(path)) as tar:
        for key, files in samples.items():
            tar.write({"__key__": key} | files)
    return str(path)


def colour(number):
    return (10 * number % 256, 255 - 10 * number % 256, 7)


class Colours:
    """In place of a CLIP: the dense features of an image are its colours, averaged over 2x2 pixels."""

    patch = 2

    def encode_dense(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3)
        return torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 2)


def stream(folder, counts=(8, 7, 5), clip=None, size=8, workers=0):
    """StreamedImages of shards of images, each of the colour of its number, with a bad sample at the end of each shard."""
    numbers = iter(range(sum(counts)))
    for shard, count in enumerate(counts):
        samples = {f"k{i}": {"png": Image.new("RGB", (8, 10), colour(next(numbers))), "txt": "a cat"} for i in range(count)}
        write_tar(folder / f"s{shard}.tar", samples | {"bad": {"png": Image.new("RGB", (4, 4)), "txt": "a cat"}})  # too small
    paths = shards.expand(f"{folder}/s*.tar")
    keys = [key for path in paths for key, _, _ in shards.read_pairs(path, shards.Report())]
    assert len(keys) == sum(counts)
    return StreamedImages(clip or Colours(), paths, keys, size, workers)
