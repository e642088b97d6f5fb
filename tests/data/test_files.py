"""Files written whole: what is left of the old one, and what the error says, if writing fails."""

import errno
import subprocess
import sys

import pytest

from ovseg.data import files, images
from ovseg.data.files import source_digest, write_whole

# The kernel refuses to write beyond a limit on the size of files, as it does on a full disk.
LIMITED = """
import resource, sys
from ovseg.data.files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
write_whole(sys.argv[1], lambda part: part.write_text("x" * 1_600_000))
"""


def test_a_full_disk_keeps_the_old_file_and_is_named(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"the old one")
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"OSError: [Errno {errno.EFBIG}] File too large: '{path}'"
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_whatever_ends_the_writing(tmp_path):
    def fail(part):
        part.write_text("half")
        raise error

    path = tmp_path / "new" / "a.json"
    write_whole(path, lambda part: part.write_text("old"))
    for error in (PermissionError(errno.EACCES, "no", "other"), ValueError("why"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            write_whole(path, fail)
        assert caught.value is error and path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_digests_follow_the_source():
    assert source_digest(files, images) == source_digest(files, images) != source_digest(images)
