"""Files written whole: what is left of the old one, and what the error says, if writing fails."""

import errno

import pytest

from ovseg.data import files, images
from ovseg.data.files import source_digest, write_whole


def test_the_old_file_stays_whatever_ends_the_writing(tmp_path):
    def fail(part):
        part.write_text("half")
        raise error

    path = tmp_path / "new" / "a.json"
    write_whole(path, lambda part: part.write_text("old"))
    for error in (OSError(errno.ENOSPC, "full"), PermissionError(errno.EACCES, "no", "other"), ValueError("why"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            write_whole(path, fail)
        assert caught.value is error and path.read_text() == "old" and list(path.parent.iterdir()) == [path]
        if isinstance(error, OSError):  # names a file
            assert str(error) in (f"[Errno 28] full: '{path}'", "[Errno 13] no: 'other'")


def test_digests_follow_the_source():
    assert source_digest(files, images) == source_digest(files, images) != source_digest(images)
