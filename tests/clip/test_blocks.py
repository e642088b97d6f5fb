"""Arrays that are filled block by block: against numpy's own files, killed anywhere, damaged anywhere."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from ovseg.clip import blocks
from ovseg.clip.blocks import Blocks, open_checked

VALUES = np.random.default_rng(0).normal(size=(11, 3, 2)).astype(np.float16)
ROWS = 4  # three blocks, the last of three rows


def opened(path, mark="a", values=VALUES, rows=ROWS):
    return Blocks(path, values.shape, rows, mark, values.dtype)


def fill(array, values=VALUES, order=None):
    """Writes what is missing; returns the numbers of the blocks that were written."""
    written = list(order or array.missing)
    for block in written:
        array.write(block, values[block * ROWS : (block + 1) * ROWS])
    array.finish()
    return written


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_filled_array_is_the_file_that_numpy_writes(tmp_path, order, dtype):
    values = VALUES.astype(dtype)
    fill(opened(tmp_path / "a/x.npy", values=values), values, order)
    np.save(tmp_path / "expected.npy", values)
    assert (tmp_path / "a/x.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert sorted(contents(tmp_path / "a")) == ["x.blocks", "x.npy"]
    assert np.array_equal(open_checked(tmp_path / "a/x.npy"), values)


@pytest.mark.parametrize("done", [(), (0,), (0, 1), (1,), (0, 1, 2)])
def test_a_killed_run_goes_on_and_ends_with_the_same_files(tmp_path, done):
    fill(opened(tmp_path / "whole/x.npy"))
    array = opened(tmp_path / "killed/x.npy")
    for block in done:
        array.write(block, VALUES[block * ROWS : (block + 1) * ROWS])
    assert not (tmp_path / "killed/x.npy").exists()  # nobody takes it for the finished one
    assert fill(opened(tmp_path / "killed/x.npy")) == [block for block in range(3) if block not in done]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert opened(tmp_path / "killed/x.npy").missing == []
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("lost", range(1, 11))
def test_half_a_line_of_the_list_does_not_count(tmp_path, lost):
    fill(opened(tmp_path / "whole/x.npy"))
    array = opened(tmp_path / "x.npy")
    for block in (0, 1):
        array.write(block, VALUES[block * ROWS : (block + 1) * ROWS])
    log = tmp_path / "x.blocks"
    log.write_bytes(log.read_bytes()[:-lost])
    assert fill(opened(tmp_path / "x.npy")) == [1, 2]
    assert log.read_bytes() == (tmp_path / "whole/x.blocks").read_bytes()


def test_a_block_whose_bytes_never_reached_the_disk_is_written_again(tmp_path):
    array = opened(tmp_path / "x.npy")
    for block in (0, 1):
        array.write(block, VALUES[block * ROWS : (block + 1) * ROWS])
    with open(tmp_path / "x.npy.part", "r+b") as file:  # as after a power cut
        file.seek(-VALUES.nbytes, os.SEEK_END)
        file.write(bytes(8))
    assert fill(opened(tmp_path / "x.npy")) == [0, 2]
    assert np.array_equal(open_checked(tmp_path / "x.npy"), VALUES)


@pytest.mark.parametrize("other", [{"mark": "b"}, {"values": VALUES[:10]}, {"values": VALUES.astype(np.float32)}, {"rows": 5}])
@pytest.mark.parametrize("finished", [True, False])
def test_an_array_of_something_else_is_not_kept(tmp_path, other, finished):
    array = opened(tmp_path / "x.npy")
    if finished:
        fill(array)
    else:
        array.write(0, VALUES[:ROWS])
    assert len(opened(tmp_path / "x.npy", **other).missing) == 3
    assert not (tmp_path / "x.npy").exists()


def test_an_array_without_a_list_of_blocks_is_not_kept(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    assert len(opened(tmp_path / "x.npy").missing) == 3 and not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("row, block", [(0, 0), (5, 1), (10, 2)])
def test_a_damaged_byte_is_found_and_its_block_alone_written_again(tmp_path, row, block):
    fill(opened(tmp_path / "x.npy"))
    before = contents(tmp_path)
    damaged = VALUES.copy()
    damaged[row, 1, 1] += 1
    shutil.copy(tmp_path / "x.blocks", tmp_path / "kept")
    np.save(tmp_path / "x.npy", damaged)
    with pytest.raises(ValueError, match="x.npy is damaged: it is not what `encode` wrote"):
        open_checked(tmp_path / "x.npy")
    (tmp_path / "kept").unlink()
    assert fill(opened(tmp_path / "x.npy")) == [block] and contents(tmp_path) == before


@pytest.mark.parametrize("size", [0, 50, 127, 128, 200, -1])
def test_a_file_that_is_cut_off_is_found(tmp_path, size):
    fill(opened(tmp_path / "x.npy"))
    before = contents(tmp_path)
    (tmp_path / "x.npy").write_bytes(before["x.npy"][:size])
    with pytest.raises(ValueError, match="x.npy is damaged"):
        open_checked(tmp_path / "x.npy")
    fill(opened(tmp_path / "x.npy"))
    assert contents(tmp_path) == before


def test_a_list_that_lacks_a_block_is_no_finished_array(tmp_path):
    fill(opened(tmp_path / "x.npy"))
    log = tmp_path / "x.blocks"
    log.write_text("\n".join(log.read_text().split("\n")[:-2]) + "\n")
    with pytest.raises(ValueError, match="x.npy is damaged"):
        open_checked(tmp_path / "x.npy")


def test_a_block_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"block 2 of shape \(4, 3, 2\)"):
        opened(tmp_path / "x.npy").write(2, VALUES[:4])


def test_the_shape_is_known_of_the_same_fingerprint_alone(tmp_path):
    opened(tmp_path / "x.npy")
    assert blocks.kept_shape(tmp_path / "x.npy", "a") == VALUES.shape
    assert blocks.kept_shape(tmp_path / "x.npy", "b") is blocks.kept_shape(tmp_path / "y.npy", "a") is None
    assert json.loads((tmp_path / "x.blocks").read_text())["rows"] == ROWS


def test_too_little_space_is_said_before_anything_is_encoded(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    huge = Blocks(tmp_path / "x.npy", (2 * free, 1), free, "a")  # a hole in a file, which takes no space
    with pytest.raises(OSError, match=r"x\.npy") as caught:
        blocks.check_space_for([huge])
    assert caught.value.errno == errno.ENOSPC and "MB are needed" in str(caught.value) and "MB are free" in str(caught.value)
    blocks.check_space_for([opened(tmp_path / "y.npy")])
