"""Files written whole or not at all, and errors that say so when a disk is full."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import zlib
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on the size of files
PROBE = 1 << 20  # bytes


def write_whole(path, write):
    """Write a file whole or not at all: write(part) fills another one, which then takes its place.

    Raises OSError that names the path and the free space where that is too little; the file that was there before stays.
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
    """Within the block, whatever is raised for want of space becomes an OSError that names the path and the free space.

    file: what is written, if it is another one than path.
    """
    try:
        yield
    except Exception as error:
        if number := _full(error, file or path):
            raise no_space(path, number) from None
        raise


def no_space(path, number=errno.ENOSPC, needed=None):
    """The OSError of a file that there is no space for. number: its errno. needed: bytes, where they are known."""
    free = shutil.disk_usage(existing(path)).free
    wanted = "" if needed is None else f"{needed / 1e6:,.1f} MB are needed, "
    return OSError(number, f"{os.strerror(number)}: {wanted}{free / 1e6:,.1f} MB are free; what was finished before is kept", str(path))


def check_space(path, needed):
    """Raises OSError if the disk of a path has fewer than `needed` bytes left."""
    if needed > shutil.disk_usage(existing(path)).free:
        raise no_space(path, needed=needed)


def existing(path):
    """The nearest folder above a path that exists."""
    return next(folder for folder in Path(path).absolute().parents if folder.is_dir())


def _full(error, file):
    """The errno of an error that comes of want of space, else None.

    Libraries that write by themselves raise errors of their own: Rust's name the errno, and of others it counts whether the file takes
    more bytes.
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
    """A hash of source files, in hex: what results depend on besides their inputs."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
