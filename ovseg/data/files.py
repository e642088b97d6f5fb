"""Atomic file writes."""

import hashlib
import os
from pathlib import Path


def write_whole(path, write):
    """Write a file atomically: write(part) writes a temporary file, which then replaces path. An OSError, as of a full disk, names it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def source_digest(*modules):
    """Hex digest of the source files of modules, for results that depend on their code."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()
