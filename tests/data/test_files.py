"""Files written whole: what is left of the old one, and what is said, when there is no space."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ovseg.data.files import checksum, code, write_whole

# Within a limit on the size of files: the kernel refuses a write beyond it as it does on a full disk.
LIMITED = """
import resource, sys
import numpy as np, torch
from safetensors.torch import save_file
from ovseg.clip.blocks import Blocks
from ovseg.data.files import write_whole
kind, path, limit = sys.argv[1], sys.argv[2], 1 << 20
values = np.ones((4, 100_000), np.float32)  # 1.6 MB
array = Blocks(path, values.shape, 1, "mark", np.float32) if kind == "blocks" else None
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if kind == "blocks":
        for row in range(4):
            array.write(row, values[row : row + 1])
    else:
        write_whole(path, {
            "torch": lambda part: torch.save({"x": torch.from_numpy(values)}, part),
            "safetensors": lambda part: save_file({"x": torch.from_numpy(values)}, part),
            "text": lambda part: part.write_text("x" * 1_600_000),
        }[kind])
except OSError as error:
    print(error)
"""


def limited(kind, path):
    """What a process prints that writes 1.6 MB where 1 MB fits."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LIMITED, kind, path], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["torch", "safetensors", "text"])
def test_a_disk_that_is_full_keeps_the_old_file_and_is_one_line_that_names_it(tmp_path, kind):
    path = tmp_path / "run.pt"
    path.write_bytes(b"the old one")
    line = limited(kind, path)
    assert len(line.splitlines()) == 1 and str(path) in line and "File too large" in line and "MB are free" in line
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_an_array_keeps_the_blocks_that_had_space(tmp_path):
    from ovseg.clip.blocks import Blocks

    line = limited("blocks", tmp_path / "x.npy")
    assert len(line.splitlines()) == 1 and str(tmp_path / "x.npy") in line and "File too large" in line
    assert Blocks(tmp_path / "x.npy", (4, 100_000), 1, "mark", np.float32).missing == [2, 3]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_was_there_stays_whatever_ends_the_writing(tmp_path, number):
    def fail(part):
        part.write_text("half")
        raise error

    path = tmp_path / "a.json"
    write_whole(path, lambda part: part.write_text("old"))
    for error, said in ((OSError(number, "full"), "MB are free"), (PermissionError(errno.EACCES, "no"), "no"), (ValueError("why"), "why")):
        with pytest.raises(type(error), match=said) as caught:
            write_whole(path, fail)
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
        assert (caught.value is error) == (said != "MB are free") and (str(path) in str(caught.value)) == (said == "MB are free")


def test_hashes_follow_the_contents(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"123456789")
    second.write_bytes(b"123456789")
    assert checksum(first) == checksum(second) == 0xCBF43926  # the check value of CRC-32
    assert code(first, second) == code(second, first) != code(first)
    second.write_bytes(b"123456780")
    assert checksum(second) != checksum(first) and code(first, second) != code(second, first)
