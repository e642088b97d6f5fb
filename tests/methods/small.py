"""What tests of training share: settings, pairs as cached features, pairs in shards, what `prepare` and `encode` leave."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import bank_of

from ovseg import params
from ovseg.data import shards
from ovseg.methods import contrast
from ovseg.methods.batches import CachedImages, StreamedImages
from ovseg.methods.decoder import Decoder
from ovseg.methods.distributed import World
from ovseg.methods.objectives import Batch

P = params.load(path=Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
WIDTH, PAIRS, BATCH = 16, 24, 8
SETTINGS = P.train.model_copy(
    update={"batch": BATCH, "epochs": 3.0, "warmup_epochs": 0.5, "precision": "float32", "checkpoint_steps": 2, "lr": 0.01}
    | {"workers": 0, "threads": 1, "processes": 1}
)
CAPTIONS = ["a dog and a cat.", "the sea", "a boat on the sea", "running quickly", "a tree, a house and the sky", "a cat."]


def changed(**values):
    return SETTINGS.model_copy(update=values)


def make_bank(pairs=PAIRS):
    return bank_of([CAPTIONS[n % len(CAPTIONS)] for n in range(pairs)], ["a photo of a {}.", "many {}."])


def data():
    """Cached features of random pairs, the bank of their texts, embeddings of these, the same in every process."""
    bank, rng = make_bank(), np.random.default_rng(1)
    texts = rng.normal(size=(len(bank.texts), WIDTH)).astype(np.float16)
    return CachedImages(rng.normal(size=(PAIRS, WIDTH, 4, 4)).astype(np.float16)), bank, texts


def batch_of(seed=0, images=8, width=6, side=3, subjects=None):
    """(objectives.Batch, stages of a decoder, the decoder) in float64, random; subjects: as of contrast.negatives."""
    rng = np.random.default_rng(seed)
    decoder = Decoder(width).double()
    for block in decoder.blocks:
        torch.nn.init.constant_(block.gate, 0.5)
    dense, texts = (torch.from_numpy(rng.normal(size=shape)) for shape in ((images, width, side, side), (images, width)))
    negative = contrast.negatives(torch.tensor(subjects or range(images)), True)
    batch = Batch(dense, texts, negative, None, None, "float32", np.random.default_rng(seed), World())
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


def write_cache(path, array):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def write_project():
    """Make the working directory a project's folder with data(), as `prepare` and `encode` leave it."""
    images, bank, texts = data()
    bank.save("data/prepared")
    Path("data/prepared/captions.txt").unlink()  # training needs none of the strings
    Path("data/prepared/shards.txt").write_text("")
    write_cache("data/features/train/pairs.npy", images.array)
    write_cache("data/features/train/texts.npy", texts)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def colour(number):
    return (10 * number, 255 - 10 * number, 7)


class Colours:
    """Stands in for a CLIP: the dense features of an image are its colours, averaged over 2x2 pixels."""

    dense = "maskclip"
    positions = "size"

    def encode_dense(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3)
        return torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 2)


def stream(folder, counts=(8, 7, 5), clip=None, size=8, workers=0):
    """StreamedImages of shards of images, each of the colour of its number, with a bad sample at the end of each shard."""
    numbers = iter(range(sum(counts)))
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"s{shard}.tar", "w") as tar:
            for key in [f"k{i}" for i in range(count)] + ["bad"]:
                out = io.BytesIO()
                shape = (4, 4) if key == "bad" else (8, 10)  # to be cropped
                Image.new("RGB", shape, (1, 2, 3) if key == "bad" else colour(next(numbers))).save(out, "PNG")
                for name, content in ((f"{key}.png", out.getvalue()), (f"{key}.txt", b"a cat")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    paths = shards.expand(f"{folder}/s*.tar")
    keys = [key for path in paths for key, _, _ in shards.pairs(path, shards.Report())]
    assert len(keys) == sum(counts)
    return StreamedImages(clip or Colours(), paths, keys, size, workers)
