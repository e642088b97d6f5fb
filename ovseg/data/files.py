"""Atomic file writes, and clear errors when a disk is full."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import zlib
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, file size limit exceeded
PROBE = 1 << 20  # bytes


def write_whole(path, write):
    """Write a file atomically: write(part) writes a temporary file, which then replaces path.

    Raises OSError with the path and the free space if the disk is full; an existing file is then kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with space_for(path, part):
            write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def space_for(path, file=None):
    """Context manager: errors caused by lack of space become an OSError with the path and the free space.

    file: the file being written, if different from path.
    """
    try:
        yield
    except Exception as error:
        if number := _full(error, file or path):
            raise no_space(path, number) from None
        raise


def no_space(path, number=errno.ENOSPC, needed=None):
    """Create the OSError for a file that does not fit on the disk. number: its errno. needed: bytes, if known."""
    free = shutil.disk_usage(existing(path)).free
    wanted = "" if needed is None else f"{needed / 1e6:,.1f} MB are needed, "
    return OSError(number, f"{os.strerror(number)}: {wanted}{free / 1e6:,.1f} MB are free; what was finished before is kept", str(path))


def check_space(path, needed):
    """Raise OSError if the disk that holds path has fewer than `needed` bytes free."""
    if needed > shutil.disk_usage(existing(path)).free:
        raise no_space(path, needed=needed)


def existing(path):
    """The nearest existing parent folder of a path."""
    return next(folder for folder in Path(path).absolute().parents if folder.is_dir())


def _full(error, file):
    """The errno of an error caused by lack of space, else None.

    Libraries that write files raise errors of their own. Rust's contain the errno. For others, a probe tests whether the file can
    still grow.
    """
    named = error.errno if isinstance(error, OSError) else int(found[1]) if (found := re.search(r"os error (\d+)", str(error))) else None
    if named is not None:
        return named if named in FULL else None
    try:
        with open(file, "ab") as probe:
            probe.write(bytes(PROBE))
    except OSError as refused:
        return refused.errno if refused.errno in FULL else None
    return None


def checksum(path):
    """CRC-32 of a file's contents."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def code(*files):
    """Hex digest of source files, on which results depend besides their inputs."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
