"""Arrays on disk that are filled block by block, so that a killed run can resume, and verified when read.

    NAME.npy       the array; NAME.npy.part while blocks are missing
    NAME.blocks    one line of JSON: the fingerprint of all that the array depends on, its shape and dtype, and the rows per block; then
                   one line per written block: its number and the CRC-32 of its bytes

A block counts as written if its bytes match its CRC-32. After a kill, a full disk or file corruption, all other blocks are written
again.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ..data.files import check_space, space_for, write_whole


class Blocks:
    """An array of `shape`, filled in blocks of `rows` rows.

    An existing array at path is resumed if its fingerprint, shape, dtype and rows per block match, and deleted otherwise. missing: the
    numbers of the blocks still to be written, in order. Call `finish` once all are written.
    """

    def __init__(self, path, shape, rows, fingerprint, dtype=np.float16):
        self.path, self.shape, self.rows, self.dtype = Path(path), tuple(shape), rows, np.dtype(dtype)
        self.part, self.log = self.path.with_name(f"{self.path.name}.part"), log_of(path)
        self.head = {"fingerprint": fingerprint, "shape": list(self.shape), "dtype": self.dtype.name, "rows": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.sums = self._kept() or self._new()
        count = math.ceil(self.shape[0] / rows)
        self.missing = [block for block in range(count) if block not in self.sums]
        if self.path.is_file():
            if not self.missing:
                self.part.unlink(missing_ok=True)
                return
            os.replace(self.path, self.part)
        self._write_log()  # drops damaged blocks and an incomplete last line

    def rows_of(self, block):
        """Slice of the rows of a block."""
        return slice(block * self.rows, min((block + 1) * self.rows, self.shape[0]))

    def wanted(self):
        """Mask of missing rows: (shape[0],) bool."""
        rows = np.zeros(self.shape[0], bool)
        for block in self.missing:
            rows[self.rows_of(block)] = True
        return rows

    @property
    def lacking(self):
        """Number of bytes still to be written."""
        return len(self.missing) * self.rows * math.prod(self.shape[1:]) * self.dtype.itemsize

    def write(self, block, values):
        """Write a block. values: array of its rows. Raises OSError with the path if the disk is full."""
        data = np.ascontiguousarray(values, self.dtype)
        rows = self.rows_of(block)
        if data.shape != (rows.stop - rows.start, *self.shape[1:]):
            raise ValueError(f"{self.path}: block {block} of shape {data.shape}")
        with space_for(self.path):
            with open(self.part, "r+b") as file:
                file.seek(-(self.shape[0] - rows.start) * data[0].nbytes, os.SEEK_END)
                file.write(data.data.cast("B"))
            self.sums[block] = zlib.crc32(data)
            with open(self.log, "a") as file:
                file.write(_line(block, self.sums[block]))

    def finish(self):
        """Rename the array to its final name. Call once no block is missing."""
        if self.part.is_file():
            self._write_log()  # sorts the lines by block
            os.replace(self.part, self.path)
        self.missing = []

    def _kept(self):
        """Checksums of the valid blocks of an earlier run, or None if that run does not match."""
        head, sums = _read(self.log)
        file = self.path if self.path.is_file() else self.part
        if head != self.head or not file.is_file():
            return None
        try:
            array = np.load(file, mmap_mode="r")
        except (ValueError, EOFError, OSError):  # truncated file
            return None
        if array.shape != self.shape or array.dtype != self.dtype:
            return None
        return {block: value for block, value in sums.items() if zlib.crc32(np.ascontiguousarray(array[self.rows_of(block)])) == value}

    def _new(self):
        discard(self.path)
        with space_for(self.path), open(self.part, "wb") as file:
            about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, about)
            file.truncate(file.tell() + math.prod(self.shape) * self.dtype.itemsize)
        return {}

    def _write_log(self):
        lines = "".join(_line(block, value) for block, value in sorted(self.sums.items()))
        write_whole(self.log, lambda part: part.write_text(json.dumps(self.head) + "\n" + lines))


def log_of(path):
    """Path of an array's block list."""
    return Path(path).with_suffix(".blocks")


def discard(path):
    """Delete an array, finished or not, and its block list."""
    path = Path(path)
    for file in (log_of(path), path, path.with_name(f"{path.name}.part")):
        file.unlink(missing_ok=True)


def kept_shape(path, fingerprint):
    """Shape of the array at path, finished or not, if its fingerprint matches; else None."""
    head, _ = _read(log_of(path))
    return tuple(head["shape"]) if head and head["fingerprint"] == fingerprint else None


def open_checked(path):
    """Open a finished array, memory-mapped. Raises ValueError with its path if it is damaged.

    The whole file is read to verify its checksums, at disk speed. Without a block list, its bytes are not verified.
    """
    head, sums = _read(log_of(path))
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): run `encode` again") from None
    if head is None:
        return array
    starts = range(0, array.shape[0], head["rows"])
    whole = list(array.shape) == head["shape"] and all(
        zlib.crc32(np.ascontiguousarray(array[start : start + head["rows"]])) == sums.get(block) for block, start in enumerate(starts)
    )
    if not whole:
        raise ValueError(f"{path} is damaged: it is not what `encode` wrote; run `encode` again")
    return array


def check_space_for(arrays):
    """Raise OSError if the disk lacks space for the missing blocks of `arrays`, a list of Blocks."""
    check_space(arrays[0].path, sum(array.lacking for array in arrays))


def _line(block, value):
    return f"{block} {value:08x}\n"


def _read(log):
    """Read a block list: its head and {block: checksum}, or (None, {}) if there is none. An incomplete last line is ignored."""
    try:
        head, *lines = log.read_text().split("\n")[:-1]
        return json.loads(head), {int(block): int(value, 16) for block, value in (line.split() for line in lines)}
    except (OSError, ValueError):
        return None, {}
