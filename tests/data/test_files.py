"""Files written whole: what is left of the old one, and what the error says, if writing fails; who may read them."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

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


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", lambda part: save_file({"a": torch.zeros(2)}, part))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_disk_that_is_too_small_is_named_with_what_is_needed(tmp_path):
    files.check_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"90000000.0 GB more are needed, [\d.]+ GB are free.*test_a_disk"):
        files.check_space(tmp_path, 9e16)


def test_code_is_compared_without_comments_and_docstrings(tmp_path):
    def tree(text):
        (tmp_path / "code.py").write_text(text)
        return files.syntax(tmp_path / "code.py")

    plain = tree("class A:\n    def f(self):\n        return 1\n")
    assert plain == tree('"""A."""\n\n\nclass A:  # a\n    """B."""\n\n    def f(self):\n        """C."""\n        return 1  # one\n')
    assert plain != tree("class A:\n    def f(self):\n        return 2\n")
