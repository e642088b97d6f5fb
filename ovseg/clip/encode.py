"""Encodes texts and images with the frozen CLIP once, into arrays on disk that are memory-mapped when read.

    train/texts.npy              (T, d)        every text of the bank
    train/pairs.npy              (N, d, h, w)  dense features of the training images, if they are cached
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


def encode_pairs(clip, paths, keys, settings, folder):
    """Encode the training images into pairs.npy, row n that of keys[n]. settings: schema.Clip. Raises ValueError at other pairs."""
    made_with = {"clip": clip.fingerprint, "dense": clip.dense, "image_size": settings.image_size, "batch": settings.batch}
    made_with |= {"code": source_digest(images, shards), "keys": digest(keys), "shards": files_digest(paths)}
    side = settings.image_size // clip.patch
    out = ArrayWriter(Path(folder) / "pairs.npy", (clip.width, side, side), made_with, settings.batch)
    check_space(folder, (len(keys) - out.rows) * out.row_bytes)
    pictures = tqdm(_pictures(paths, keys, out.rows), "encode images", len(keys), initial=out.rows, mininterval=2)
    for batch in stacks((images.center_crop(picture, settings.image_size) for picture in pictures), settings.batch):
        out.append(clip.encode_dense(batch))
    out.finish()


def _pictures(paths, keys, first):
    """Yield the pictures of the pairs from row `first` on; shards before it are not read. Raises ValueError at other pairs."""
    shard_of = [key.split("/")[0] for key in keys]
    finished = set(shard_of[:first]) - set(shard_of[first:])
    left = [key for key, shard in zip(keys, shard_of, strict=True) if shard not in finished]
    pairs = (pair for path in paths if Path(path).stem not in finished for pair in shards.read_pairs(path, shards.Report()))
    for row, (pair, key) in enumerate(itertools.zip_longest(pairs, left), len(keys) - len(left)):
        if pair is None or pair[0] != key:
            raise ValueError(f"{key or pair[0]}: the shards have changed since `prepare` read them; run it again")
        if row >= first:
            yield pair[1]


def stacks(arrays, size):
    """Stack arrays, `size` at a time."""
    arrays = iter(arrays)
    while batch := list(itertools.islice(arrays, size)):
        yield np.stack(batch)
