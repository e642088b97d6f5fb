"""Reads all shards once: the usable pairs, and the bank of their texts."""

from collections import Counter
from pathlib import Path

from . import captions, shards

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be in any encoding


def scan(paths, max_bad_fraction, templates, stop_nouns=()):
    """Read every sample of every shard in parallel: (keys of N pairs in order, TextBank, Report). stop_nouns: make no prompts. Raises
    ValueError if two shards have the same name, if more than max_bad_fraction of the samples are unusable, or if no pair is left."""
    name, count = Counter(Path(path).stem for path in paths).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} shards are named {name}: names are part of the samples' keys and must be distinct")
    keys, report = [], shards.Report()

    def tagged():
        for rows, of_shard in shards.parallel(read_shard, paths, "scan shards"):
            report.pairs += of_shard.pairs
            report.skipped += of_shard.skipped
            report.repaired += of_shard.repaired
            for key, caption, nouns in rows:
                keys.append(key)
                yield caption, [noun for noun in nouns if noun not in stop_nouns]

    bank = captions.TextBank.collect(tagged(), templates)
    if report.bad_fraction > max_bad_fraction:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.skipped.most_common())
        bad, allowed = f"{report.bad_fraction:.1%}", f"{max_bad_fraction:.1%}"
        raise ValueError(f"{bad} of the samples are unusable ({kinds}): data.max_bad_fraction allows {allowed}")
    if not keys:
        raise ValueError(f"no usable image-text pair in {len(paths)} shards")
    return keys, bank, report


def read_shard(path):
    """Read a shard: [(key, caption, nouns)] of its usable pairs, and its Report."""
    report = shards.Report()
    return [(key, caption, captions.nouns(caption)) for key, _, caption in shards.read_pairs(path, report)], report


def save(folder, paths, keys, bank):
    """Write the bank, the keys of the pairs and the shard paths into folder, for TextBank.load, `load_keys` and `load_paths`."""
    bank.save(folder)
    (Path(folder) / "pairs.txt").write_text("\n".join(keys) + "\n", **TEXT)
    (Path(folder) / "shards.txt").write_text("\n".join(map(str, paths)) + "\n", **TEXT)


def load_keys(folder):
    """Keys of the pairs, in the order of the bank."""
    return (Path(folder) / "pairs.txt").read_text(**TEXT).split("\n")[:-1]


def load_paths(folder):
    """Paths of the shards that were prepared."""
    return (Path(folder) / "shards.txt").read_text(**TEXT).split("\n")[:-1]
