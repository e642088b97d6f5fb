"""All shards read once: keys, captions, nouns and counts, and when this is an error."""

import os
import signal

import numpy as np
import pytest
from test_shards import GOOD, REPAIRED, SKIPPED, write_tar

from ovseg.data import preparation, shards
from ovseg.data.captions import TextBank, nouns

TEMPLATES = ["a photo of a {}.", "many {}."]
CAPTIONS = """a dog and a cat on the sofa
Two dogs run through the park at night. They don't stop!
running quickly
a dog and a cat on the sofa""".split("\n")


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(shards, "parallel", lambda function, items, label: map(function, items))


@pytest.fixture
def mixed(tmp_path):
    """Three shards, the later named first, with good and bad samples."""
    extension, grey, _, _ = REPAIRED["greyscale jpeg"]
    for name, keys in (("z", "ab"), ("m", "cde"), ("k", "f")):
        samples = [(key, {extension: grey, "txt": f"caption {key}".encode()}) for key in keys]
        write_tar(tmp_path / f"{name}.tar", [*samples, ("no", SKIPPED["no caption"][0]), ("small", SKIPPED["1x1"][0])])
    return [str(tmp_path / f"{name}.tar") for name in "zmk"]


def test_pairs_keep_the_order_of_shards_and_all_samples_are_counted(mixed, in_process, tmp_path):
    keys, bank, report = preparation.scan(mixed, 0.5, TEMPLATES)
    assert keys == ["z/a", "z/b", "m/c", "m/d", "m/e", "k/f"]
    assert [bank.captions[i] for i in bank.caption_index] == [f"caption {key[-1]}" for key in keys]
    assert vars(report) == {"pairs": 6, "skipped": {"no caption": 3, "image too small": 3}, "repaired": {"L to RGB": 6}}
    preparation.save(tmp_path / "prepared", mixed, keys, bank)
    assert preparation.load_keys(tmp_path / "prepared") == keys and preparation.load_paths(tmp_path / "prepared") == mixed
    assert TextBank.load(tmp_path / "prepared").texts == bank.texts


def test_nouns_found_in_other_processes_are_those_of_each_caption(tmp_path):
    samples = [(str(n), {**GOOD, "txt": caption.encode()}) for n, caption in enumerate(CAPTIONS)]
    _, bank, _ = preparation.scan([write_tar(tmp_path / f"{n}.tar", samples[n::3]) for n in range(3)], 0, TEMPLATES, ["dogs", "sofa"])
    captions = [bank.captions[i] for i in bank.caption_index]
    assert captions == [caption for n in range(3) for caption in CAPTIONS[n::3]]
    for row, caption in enumerate(captions):
        assert tuple(bank.nouns[i] for i in bank.noun_index[bank.offset[row] : bank.offset[row + 1]]) == tuple(
            noun for noun in nouns(caption) if noun not in ("dogs", "sofa")
        )
    assert np.diff(bank.offset).max() == 2 and {"dogs", "sofa"}.isdisjoint(bank.nouns)


def killed_at_two(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error():
    with pytest.raises(RuntimeError, match="SIGKILL"):
        list(shards.parallel(killed_at_two, range(4), "work"))


def test_too_many_bad_samples_no_pair_and_shards_of_one_name_are_errors(mixed, in_process, tmp_path):
    said = r"50.0% of the samples are unusable \(3 no caption, 3 image too small\): data.max_bad_fraction allows 49.0%"
    with pytest.raises(ValueError, match=said):
        preparation.scan(mixed, 0.49, TEMPLATES)
    for samples in ([("a", SKIPPED["no caption"][0])], []):
        with pytest.raises(ValueError, match="no usable image-text pair in 1 shards"):
            preparation.scan([write_tar(tmp_path / "0.tar", samples)], 1.0, TEMPLATES)
    with pytest.raises(ValueError, match="2 shards are named 0: names are part of the samples' keys and must be distinct"):
        preparation.scan([tmp_path / "0.tar", tmp_path / "other/0.tar"], 1.0, TEMPLATES)
