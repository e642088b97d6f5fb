"""Scans all shards once for usable pairs, the nouns of their captions, and img2dataset's download statistics."""

import functools
import hashlib
import json
import os
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from . import captions, images, shards
from .files import write_whole

KEPT = Path("runs/prepare")  # not in data/prepared, which DVC deletes before the stage runs
FAILURES = ("failed_to_download", "failed_to_resize")  # as img2dataset names them


class Prepared(NamedTuple):
    """Result of `scan`: keys of the N pairs in shard order, the bank of their texts, sample counts, and img2dataset's counts or None."""

    keys: list[str]
    bank: captions.TextBank
    report: shards.Report
    downloads: dict | None

    def save(self, paths, folder):
        """Write the bank, the keys of the pairs and the shard paths into folder, for TextBank.load, `load_keys` and `load_paths`."""
        self.bank.save(folder)
        (Path(folder) / "pairs.txt").write_text("\n".join(self.keys) + "\n")
        (Path(folder) / "shards.txt").write_text("\n".join(map(str, paths)) + "\n")


def load_keys(folder):
    """Keys of the pairs, in the order of the bank."""
    return (Path(folder) / "pairs.txt").read_text().split("\n")[:-1]


def load_paths(folder):
    """Paths of the shards that were prepared."""
    return (Path(folder) / "shards.txt").read_text().split("\n")[:-1]


def scan(paths, max_bad_fraction, templates, kept=KEPT):
    """Read every sample of every shard, images too, in parallel. Returns Prepared.

    Decoding dominates: about 1,100 images/s per core with a shorter side of 256 pixels. Nouns: about 18,000 captions/s per core.
    kept: folder with one result file per shard, so that a killed run can resume. A shard is read again only if it, or the code
    that reads it, has changed.
    Raises ValueError if two shards have the same name, if more than max_bad_fraction of the samples are unusable, or if no pair is left.
    """
    names = Counter(Path(path).stem for path in paths)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{names[twice[0]]} shards are named {twice[0]}: names are part of the samples' keys, and have to be distinct")
    keys, reports = [], []

    def tagged():
        for rows, report in shards.parallel(functools.partial(read_shard, kept=kept), paths, "scan shards"):
            reports.append(report)
            for key, caption, nouns in rows:
                keys.append(key)
                yield caption, nouns

    bank = captions.TextBank.collect(tagged(), templates)
    report = sum(reports, shards.Report())
    if report.bad_fraction > max_bad_fraction:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.skipped.most_common())
        raise ValueError(
            f"{report.bad_fraction:.1%} of the samples cannot be used ({kinds}): data.max_bad_fraction allows {max_bad_fraction:.1%}"
        )
    if not keys:
        raise ValueError(f"no usable image-text pair in {len(paths)} shards")
    return Prepared(keys, bank, report, downloads({path: of_shard.samples for path, of_shard in zip(paths, reports, strict=True)}))


def read_shard(path, kept):
    """Read a shard: [(key, caption, nouns)] of its usable pairs, and the Report.

    Returns the result stored in the folder `kept` by an earlier run, if it is current; otherwise reads the shard and stores the result.
    """
    path, stat = Path(path).resolve(), os.stat(path)
    source = [str(path), stat.st_size, stat.st_mtime_ns, _code()]
    file = Path(kept) / f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    if file.is_file():
        found = json.loads(file.read_text())
        if found["source"] == source:
            return found["rows"], shards.Report.of(found["report"])
    report = shards.Report()
    rows = [(key, caption, captions.nouns(caption)) for key, _, caption in shards.pairs(path, report)]
    kept = json.dumps({"source": source, "rows": rows, "report": report.as_dict()})
    write_whole(file, lambda part: part.write_text(kept))
    return rows, report


@functools.cache
def _code():
    """What the result of `read_shard` depends on besides the shard: a hash of the code, and package versions."""
    files = b"".join(Path(module.__file__).read_bytes() for module in (shards, images, captions)) + Path(__file__).read_bytes()
    return [hashlib.sha256(files).hexdigest(), *(metadata.version(name) for name in ("pillow", "textblob", "webdataset"))]


def downloads(samples):
    """Download statistics from img2dataset's NNNNN_stats.json files next to the tars, or None if there are none.

    samples: {shard path: number of samples found in it}. Returns a dict of counts over the shards that have such a file: tried,
    successes, failed_to_download, failed_to_resize; found, the samples in their tars; and incomplete, the names of shards that hold
    fewer samples than reported, or have no such file. Incomplete shards mean an interrupted download, which a new run will resume.
    """
    said = {path: stats for path in samples if (stats := _stats(path))}
    if not said:
        return None
    total = {name: sum(stats[name] for stats in said.values()) for name in ("count", *FAILURES, "successes")}
    incomplete = [Path(path).name for path in samples if path not in said or samples[path] < said[path]["successes"]]
    found = sum(samples[path] for path in said)
    return {"tried": total.pop("count"), **total, "found": found, "incomplete": incomplete}


def _stats(path):
    """img2dataset's statistics of one shard, or None. img2dataset writes this file last."""
    try:
        stats = json.loads(Path(path).with_name(f"{Path(path).stem}_stats.json").read_text())
        return {name: int(stats[name]) for name in ("count", "successes", *FAILURES)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
