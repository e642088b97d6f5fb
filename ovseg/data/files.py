"""Atomic file writes, and digests of code."""

import hashlib
import json
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


def write_json(path, values, indent=1, **options):
    """Write values as JSON atomically. options: of json.dumps. Names of files may be in any encoding."""
    text = json.dumps(values, indent=indent, **options) + "\n"
    write_whole(path, lambda part: part.write_text(text, "utf-8", "backslashreplace"))


def source_digest(*modules):
    """Hex digest of the source files of modules, for results that depend on their code."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()
