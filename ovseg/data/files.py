"""Atomic file writes, the space for them, and digests of code."""

import ast
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path


def write_whole(path, write):
    """Write a file atomically: write(part) writes a temporary file, which then replaces path. An OSError, as of a full disk, names it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a killed process
        part.touch()
        mode = part.stat().st_mode  # as the umask says; safetensors would let only the owner read
        write(part)
        part.chmod(mode)
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


def check_space(folder, size):
    """Raises OSError if the disk of a folder has less than `size` bytes free."""
    if size > (free := shutil.disk_usage(folder).free):
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB more are needed, {free / 1e9:.1f} GB are free", str(folder))


def syntax(file):
    """The syntax tree of a Python file as text, without docstrings: comments and layout do not change it."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def digest(values):
    """SHA-256 of plain values, in hex."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def source_digest(*modules):
    """Hex digest of the syntax of modules, for results that depend on their code."""
    return digest([syntax(module.__file__) for module in modules])
