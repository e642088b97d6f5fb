"""Encodes texts and images with the frozen CLIP once, into arrays on disk that are memory-mapped when read.

    train/texts.npy              (T, d)        every text of the bank
    train/pairs.npy              (N, d, h, w)  dense features of the training images, if they are cached
    train/images.npy             (N, d)        embeddings of the whole training images, if a run curates texts with them
    benchmarks/NAME/classes.npy  (C, d)        embeddings of the class names of benchmark NAME (float32, unit length)
    benchmarks/NAME/MODE.npy     (W, d, h, w)  dense features of the windows of its pictures, in order; MODE is one of dense.DENSE_MODES

Others are float16 and not normalised. The JSON beside an array holds what it was made with and, once it is complete, its number of rows and
its SHA-256. A killed run resumes after its last block; later runs keep an array as long as what it was made with is the same.
"""

import hashlib
import itertools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data import images, shards
from ..data.files import check_space, digest, source_digest, write_json

TEXTS = 4096  # texts per block


def open_cached(path):
    """Open an array, memory-mapped, or return None if there is none."""
    return np.load(path, mmap_mode="r") if Path(path).is_file() else None


def as_tensor(array, device="cpu"):
    """Rows of an array as a float32 tensor."""
    return torch.from_numpy(np.array(array)).to(device).float()


class ArrayWriter:
    """Writes an array block by block, and continues one with the same made_with from an earlier run. Call `finish` at the end.
    row: shape of a row. made_with: dict of plain values, all that the array depends on. block: number of rows of each block but the
    last. rows: number of rows written, of row_bytes each. complete: an earlier run finished the array, so nothing is left to append."""

    def __init__(self, path, row, made_with, block, dtype=np.float16):
        self.path, self.part, self.json = Path(path), Path(f"{path}.part"), Path(path).with_suffix(".json")
        self.row, self.dtype, self.made_with = row, np.dtype(dtype), made_with
        record = json.loads(self.json.read_text(encoding="utf-8")) if self.json.is_file() else {}
        same = record.get("made_with") == made_with
        self.row_bytes = math.prod(row) * self.dtype.itemsize
        self.complete = same and "sha256" in record and self.path.is_file()
        self.rows = record["rows"] if self.complete else 0
        if not self.complete:
            for earlier in (self.path,) if same else (self.path, self.part):
                earlier.unlink(missing_ok=True)
            write_json(self.json, {"made_with": made_with})
            self.file = open(self.part, "r+b" if self.part.exists() else "wb")
            self._write_header()
            self.rows = max(0, self.part.stat().st_size - self.file.tell()) // (self.row_bytes * block) * block
            self.file.seek(self.row_bytes * self.rows, os.SEEK_CUR)

    def append(self, values):
        """Write the next rows. values: tensor (n, *row). Raises OSError with the path if the disk is full."""
        try:
            self.file.write(values.cpu().numpy().astype(self.dtype).tobytes())
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self.rows += len(values)

    def finish(self):
        """Complete the header and the JSON, and give the array its name."""
        if not self.complete:
            self._write_header()
            self.file.close()
            with open(self.part, "rb") as file:
                os.fsync(file.fileno())
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(self.part, self.path)
            write_json(self.json, {"made_with": self.made_with, "rows": self.rows, "sha256": sha256})

    def _write_header(self):
        self.file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
        np.lib.format.write_array_header_1_0(self.file, header)  # has the same length for any number of rows


def files_digest(paths):
    """SHA-256 of the names, sizes and times of change of files, which are not read."""
    return digest([[Path(path).name, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths])


def encode_texts(clip, texts, folder):
    """Encode a list of texts into texts.npy."""
    made_with = {"clip": clip.fingerprint, "texts": digest(texts), "batch": TEXTS}
    out = ArrayWriter(Path(folder) / "texts.npy", (clip.width,), made_with, TEXTS)
    check_space(folder, (len(texts) - out.rows) * out.row_bytes)
    for start in tqdm(range(out.rows, len(texts), TEXTS), "encode texts", mininterval=2):
        out.append(clip.encode_text(texts[start : start + TEXTS]))
    out.finish()


@dataclass
class Squares:
    """Square images (n, size, size, 3) uint8 of n raw samples: a data set whose indices are lists of samples."""

    size: int

    def __getitem__(self, samples):
        return np.stack([images.center_crop(shards.decode_image(sample), self.size) for sample in samples])


def encode_pairs(clip, paths, keys, settings, folder, name="pairs"):
    """Encode the training images into pairs.npy, row n that of keys[n]; with name "images", whole images into images.npy. settings:
    schema.Clip. Raises ValueError if shards lack a key."""
    whole, side = name == "images", settings.image_size // clip.patch
    size, row, encode = (clip.image_size, (), clip.encode_image) if whole else (settings.image_size, (side, side), clip.encode_dense)
    made_with = {"clip": clip.fingerprint, "dense": clip.dense, "image_size": size, "batch": settings.batch}
    made_with |= {"code": source_digest(images, shards), "keys": digest(keys), "shards": files_digest(paths)}
    out = ArrayWriter(Path(folder) / f"{name}.npy", (clip.width, *row), made_with, settings.batch)
    if out.complete:
        return
    check_space(folder, (len(keys) - out.rows) * out.row_bytes)
    samples = _samples(paths, keys[out.rows :])
    few = iter(lambda: list(itertools.islice(samples, 16)), [])  # read here, decoded by processes; arrays come through pipes (batches.py)
    options = {"batch_size": None, "sampler": few, "num_workers": min(16, torch.get_num_threads()), "collate_fn": np.asarray}
    squares = itertools.chain.from_iterable(torch.utils.data.DataLoader(Squares(size), **options))
    for batch in stacks(tqdm(squares, "encode images", len(keys), initial=out.rows, mininterval=2), settings.batch):
        out.append(encode(batch))
    out.finish()


def _samples(paths, keys):
    """Yield the raw samples of the pairs `keys`; other shards are not read. Raises ValueError unless all come, in this order."""
    known, names = {*keys}, {key.split("/")[0] for key in keys}
    read = (sample for path in paths if Path(path).stem in names for sample in shards.read_samples(path))
    found = ((key, sample) for sample in read if (key := f"{Path(sample['__url__']).stem}/{sample['__key__']}") in known)
    for key, (own, sample) in itertools.zip_longest(keys, found, fillvalue=(None, None)):
        if own != key:
            raise ValueError(f"{key or own}: the shards have changed since `prepare` read them; run it again")
        yield sample


def stacks(arrays, size):
    """Stack arrays, `size` at a time."""
    arrays = iter(arrays)
    while batch := list(itertools.islice(arrays, size)):
        yield np.stack(batch)
