"""All shards read once: img2dataset's folder, nouns in parallel, what is kept when a run is killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import textblob.en
from test_shards import GOOD, REPAIRED, SKIPPED, write_tar

from ovseg.data import preparation, shards
from ovseg.data.shards import Report

TEMPLATES = ["a photo of a {}.", "many {}."]


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(shards, "parallel", lambda function, items, label: map(function, items))


@pytest.fixture
def mixed(tmp_path):
    """Three shards, the later named first, with good and bad samples."""
    for name, keys in (("z", "ab"), ("m", "cde"), ("k", "f")):
        samples = [(key, {**GOOD, "txt": f"caption {key}".encode()}) for key in keys]
        write_tar(tmp_path / f"{name}.tar", [*samples, ("no", SKIPPED["no caption"][0]), ("small", SKIPPED["1x1"][0])])
    return [str(tmp_path / f"{name}.tar") for name in "zmk"]


FOUND = [(f"{shard}/{key}", f"caption {key}") for shard, keys in (("z", "ab"), ("m", "cde"), ("k", "f")) for key in keys]


@pytest.fixture
def scan(tmp_path):
    def scan(paths, max_bad_fraction=0.0):
        return preparation.scan(paths, max_bad_fraction, TEMPLATES, tmp_path / "kept")

    return scan


def captions_of(prepared):
    return [prepared.bank.captions[i] for i in prepared.bank.caption]


def nouns_of(bank):
    return [tuple(bank.nouns[i] for i in bank.noun[first:end]) for first, end in zip(bank.offset, bank.offset[1:], strict=False)]


# ---- what is found


def test_scan_keeps_the_order_of_shards(mixed, in_process, scan):
    found = scan(mixed, 0.5)
    assert list(zip(found.keys, captions_of(found), strict=True)) == FOUND
    assert found.report.as_dict() == {"pairs": 6, "skipped": {"no caption": 3, "image too small": 3}, "repaired": {}}
    assert found.report.bad_fraction == 0.5


CAPTIONS = """a dog and a cat on the sofa
Two dogs run through the park at night. They don't stop!
actor attends the premiere of film at theatre on wednesday
"quoted" words , and (bracketed) ones ... e.g. U.S. cities
person 's well-known T-shirt : 50 % off in 2012 :-)
A Café – 日本 in the north-west
running quickly
a dog and a cat on the sofa""".split("\n")


def test_nouns_found_in_parallel_are_those_of_the_plain_tagger(tmp_path, scan):
    samples = [(str(n), {**GOOD, "txt": caption.encode()}) for n, caption in enumerate(CAPTIONS)]
    found = scan([write_tar(tmp_path / f"{n}.tar", samples[n::3]) for n in range(3)])  # in spawned processes
    assert captions_of(found) == [caption for n in range(3) for caption in CAPTIONS[n::3]]
    expected = []
    for caption in captions_of(found):
        words = [word.lower() for word, tag in textblob.en.tag(caption) if tag[:2] == "NN" and word.isalpha() and len(word) > 1]
        expected.append(tuple(sorted(set(words), key=words.index)))
    assert nouns_of(found.bank) == expected and any(expected)
    assert found.bank.summary()["duplicates"] == 1


def test_too_many_bad_samples_are_an_error_that_counts_them(mixed, in_process, scan):
    with pytest.raises(ValueError) as caught:
        scan(mixed, 0.49)
    for part in ("50.0%", "3 no caption", "3 image too small", "max_bad_fraction", "49.0%"):
        assert part in str(caught.value)


def test_scan_counts_repairs_of_all_shards(tmp_path, in_process, scan):
    extension, data, kind, _ = REPAIRED["greyscale jpeg"]
    paths = [write_tar(tmp_path / f"{n}.tar", [("a", {extension: data, "txt": b"x"}), ("b", GOOD)]) for n in range(3)]
    for _ in range(2):  # read, then kept
        assert scan(paths).report.as_dict() == {"pairs": 6, "skipped": {}, "repaired": {kind: 3}}


def test_scan_without_any_pair_is_an_error(tmp_path, in_process, scan):
    for samples in ([("a", SKIPPED["no caption"][0])], []):
        with pytest.raises(ValueError, match="no usable image-text pair in 1 shards"):
            scan([write_tar(tmp_path / "s.tar", samples)], 1.0)


def test_shards_of_one_name_are_an_error(tmp_path, in_process, scan):
    for folder in "xy":
        (tmp_path / folder).mkdir()
    paths = [write_tar(tmp_path / folder / "0.tar", [(key, GOOD) for key in keys]) for folder, keys in (("x", "ab"), ("y", "bc"))]
    with pytest.raises(ValueError, match="2 shards are named 0: names are part of the samples' keys"):
        scan(paths)


# ---- going on after being killed


@pytest.fixture
def reads(monkeypatch):
    """Counts how often each shard is read from now on."""
    counts, real = Counter(), shards.pairs

    def pairs(path, report):
        counts[os.path.basename(path)] += 1
        return real(path, report)

    monkeypatch.setattr(shards, "pairs", pairs)
    return counts


def same(first, second):
    arrays = (np.array_equal(getattr(first.bank, name), getattr(second.bank, name)) for name in ("caption", "noun", "offset"))
    lists = ((one.keys, one.report, list(one.bank.texts)) for one in (first, second))
    return next(lists) == next(lists) and all(arrays)


def test_a_scan_killed_in_the_middle_reads_only_the_rest(tmp_path, in_process, reads, scan):
    paths = [write_tar(tmp_path / f"{n}.tar", [("a", {**GOOD, "txt": f"the cat {n}".encode()}), ("b", GOOD)]) for n in range(3)]
    paths.append(str(tmp_path / "3.tar"))
    os.mkfifo(paths[3])  # whoever reads that waits for ever
    call = f"preparation.scan({paths}, 0.0, {TEMPLATES}, {str(tmp_path / 'kept')!r})"
    (tmp_path / "run.py").write_text(f"from ovseg.data import preparation\nif __name__ == '__main__':\n    {call}\n")
    process = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "kept").glob("*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=30)  # returns when the last worker has ended, too: they hold the pipe
    os.unlink(paths[3])
    write_tar(paths[3], [("x", GOOD)])
    found = scan(paths)
    assert reads == {"3.tar": 1}
    assert same(found, scan(paths)) and reads == {"3.tar": 1}


def test_what_was_kept_of_a_changed_shard_is_not_used(tmp_path, in_process, reads, scan, monkeypatch):
    paths = [write_tar(tmp_path / f"{n}.tar", [("a", GOOD)]) for n in range(2)]
    first = scan(paths)
    assert same(scan(paths), first) and reads == {"0.tar": 1, "1.tar": 1}
    os.utime(paths[0], (1, 1))
    scan(paths)
    assert reads == {"0.tar": 2, "1.tar": 1}
    stat = os.stat(paths[1])
    write_tar(paths[1], [(str(n), {**GOOD, "txt": b"a hat"}) for n in range(9)])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(paths[1]).st_size > stat.st_size
    assert captions_of(scan(paths))[1:] == ["a hat"] * 9 and reads == {"0.tar": 2, "1.tar": 2}
    shutil.move(paths[0], tmp_path / "elsewhere.tar")
    scan([str(tmp_path / "elsewhere.tar")])
    assert reads["elsewhere.tar"] == 1
    monkeypatch.setattr(preparation, "_code", lambda: ["another version"])
    scan(paths[1:])
    assert reads["1.tar"] == 3


def test_half_a_file_is_never_used(tmp_path, in_process, monkeypatch, scan):
    paths = [write_tar(tmp_path / "0.tar", [("a", GOOD)])]

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            scan(paths)
    assert scan(paths).keys == ["0/a"]


# ---- img2dataset's folder


def stats(path, count, successes, download, resize):
    """What img2dataset writes beside a tar when it is done with it."""
    times = {"duration": 12.5, "start_time": 1700000000.0, "end_time": 1700000012.5}
    said = {"count": count, "successes": successes, "failed_to_download": download, "failed_to_resize": resize, **times}
    status = {"success": successes, "HTTP Error 404: Not Found": download, "image decoding error": resize}
    path.write_text(json.dumps(said | {"status_dict": status}, indent=4))


def test_a_folder_of_img2dataset_is_taken_as_it_is(tmp_path, in_process, scan):
    bad = SKIPPED["broken jpeg"][0]
    keys = ["000000000", "000000002", "000010001", "000010003", "000020001"]
    write_tar(tmp_path / "00000.tar", [(keys[0], GOOD), (keys[1], bad)])
    write_tar(tmp_path / "00001.tar", [(keys[2], GOOD), (keys[3], {**GOOD, "txt": b"a boat"})])
    write_tar(tmp_path / "00002.tar", [(keys[4], GOOD)])
    for n in range(3):
        (tmp_path / f"{n:05d}.parquet").write_bytes(b"PAR1 and no more: it is not opened")
    stats(tmp_path / "00000_stats.json", 5, 2, 2, 1)
    stats(tmp_path / "00001_stats.json", 4, 3, 1, 0)  # one of three is not in the tar
    found = scan(shards.expand(str(tmp_path)), 0.5)  # 00002 was interrupted: no stats
    assert found.keys == ["00000/000000000", "00001/000010001", "00001/000010003", "00002/000020001"]
    assert found.report.as_dict() == {"pairs": 4, "skipped": {"broken image": 1}, "repaired": {}}
    assert found.bank.summary()["captions"] == 2 and found.bank.summary()["duplicates"] == 2
    assert found.downloads == {
        "tried": 9,
        "failed_to_download": 3,
        "failed_to_resize": 1,
        "successes": 5,
        "found": 4,
        "incomplete": ["00001.tar", "00002.tar"],
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"count": null, "successes": 1, "failed_to_download": 0, "failed_to_resize": 0}'])
def test_stats_that_cannot_be_read_are_none(tmp_path, in_process, scan, text):
    path = write_tar(tmp_path / "00000.tar", [("a", GOOD)])
    assert scan([path]).downloads is None
    (tmp_path / "00000_stats.json").write_text(text)
    assert scan([path]).downloads is None


def test_a_report_survives_being_written():
    report = Report(3, Counter({"broken image": 2, "truncated tar": 1}), Counter({"L to RGB": 1}))
    assert Report.of(json.loads(json.dumps(report.as_dict()))) == report
    assert report.samples == 5
