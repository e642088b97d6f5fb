"""Image-text pairs in webdataset shards, as img2dataset writes them. A sample has an image (any that Pillow reads), a caption (txt, else
caption or text, else "caption" in its json) and optional other files (label maps). Unusable and repaired samples are counted by kind."""

import glob
import io
import itertools
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from .images import TURNED, TooLarge, center_crop, decoded, suffixes, to_rgb

CAPTIONS = ("txt", "caption", "text")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # of paths and captions: what data/pack.py makes shards of
MIN_SIDE = 8  # pixels; a smaller image is a tracking pixel or a broken download
APART = "files of a sample apart in the tar: write it with tar --sort=name"
UNSAFE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")  # in a key: line breaks, and what tarfile makes of bytes that are not UTF-8


class BadSample(Exception):
    """A sample that cannot be used. The message is its kind, for counting."""


class Incomplete(FileNotFoundError):
    """Only some shards of a brace range exist."""


@dataclass
class Report:
    """Counts of usable pairs in shards, and of skipped and repaired samples by kind."""

    pairs: int = 0
    skipped: Counter = field(default_factory=Counter)
    repaired: Counter = field(default_factory=Counter)

    @property
    def bad_fraction(self):
        bad = sum(self.skipped.values())
        return bad / max(1, bad + self.pairs)


def expand(spec):
    """Sorted shard paths from a path, a glob ("pairs/*.tar"), a brace range ("{00000..00331}.tar"), or a folder with tars
    in it or its subfolders. Raises FileNotFoundError if nothing matches, Incomplete if only some parts of a brace range do."""
    from webdataset import shardlists  # imports torch, which the workers of `prepare` do not need

    if spec and Path(spec).is_dir():
        spec = f"{glob.escape(str(spec))}/**/*.[tT][aA][rR]"
    parts = [str(spec)] if Path(spec).is_file() else shardlists.expand_urls(str(spec))
    matches = {part: [part] if Path(part).is_file() else sorted(glob.glob(part, recursive=True)) for part in parts}
    missing = [part for part, names in matches.items() if not names]
    if len(missing) == len(matches):
        raise FileNotFoundError(f"no shards at {spec}: expected webdataset tars, as `ovseg pack` makes them")
    if missing:
        raise Incomplete(f"{len(missing)} of {len(matches)} shards of {spec} do not exist, the first {missing[0]}")
    paths = [name for names in matches.values() for name in names]
    if paths[0].lower().endswith(TABLES):
        raise FileNotFoundError(f"{paths[0]} is no tar: `ovseg pack {paths[0]} FOLDER` makes shards of its pairs")
    return paths


def read_samples(path, report=None, label=None):
    """Yield the raw samples of one shard, {"__key__": str, "__url__": path, extension: bytes}. As in webdataset, a key ends at a file's
    first dot; but if cat.1 has an image and a caption, or an image and a label map (of the extension `label`), it is a key of its own. A
    truncated or broken tar ends early. If files or samples share a name, the first one is used. A report counts what is wrong."""
    report, seen = report or Report(), {}
    for stem, group in itertools.groupby(_read_files(path, report), lambda file: file[0]):
        for head, files in _split([file[1:] for file in group], label).items():
            sample = dict(reversed(files))
            key = UNSAFE.sub(lambda character: ascii(character[0])[1:-1], name := f"{stem}.{head}".removesuffix("."))
            if len(sample) < len(files):
                report.skipped["file name twice"] += 1
            if key in seen:
                report.skipped[APART if seen[key].isdisjoint(sample) else "key twice"] += 1
                continue
            if key != name:
                report.repaired["key with line breaks or not UTF-8"] += 1
            seen[key] = set(sample)
            yield {"__key__": key, "__url__": str(path), **sample}


def _split(files, label):
    """Split files with the same first part of their names into samples. files: (the rest of the name, bytes). Returns {head: [(extension,
    bytes)]}, where head is the part of the rest that belongs to the key."""
    content, samples = {rest.lower(): data for rest, data in files}, {}
    pictures = {*suffixes()} - {label}
    heads = {rest.rpartition(".")[0] for rest, _ in files if rest.lower().rpartition(".")[2] in pictures}
    for head in sorted(heads - {""}):
        own = {name: content.get(f"{head.lower()}.{name}") for name in (*CAPTIONS, "json", label)}
        if own[label] is None and _caption(own) is None:
            heads.discard(head)
    for rest, data in files:
        parts = rest.split(".")
        head = next((head for n in range(len(parts) - 1, 0, -1) if (head := ".".join(parts[:n])) in heads), "")
        samples.setdefault(head, []).append((rest[len(head) :].lstrip(".").lower(), data))
    return samples


def _read_files(path, report):
    """Yield the files of a tar, (name up to its first dot, rest, bytes). Counts other files, and a tar that is broken or ends early."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                start, dot, rest = name.partition(".")
                wanted = member.isreg() and not re.match("__[^/]*__($|/)", member.name)  # webdataset's own metadata
                if wanted and start and dot:
                    yield f"{folder}{slash}{start}", rest, tar.extractfile(member).read()
                elif wanted:
                    report.repaired["hidden file left out" if dot else "file without suffix left out"] += 1
                tar.members = []  # which would grow
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read()  # zeros, unless tarfile mistook a broken header for it
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise tarfile.ReadError
    except Exception:  # tarfile and decompressors raise many kinds of error on broken bytes
        report.skipped["truncated tar"] += 1


def _caption(sample):
    """The bytes of a raw sample's caption, or None."""
    try:
        data = next((sample[name] for name in CAPTIONS if sample.get(name) is not None), None)
        return json.loads(sample["json"])["caption"].encode() if data is None else data
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # no json, or no caption string in it
        return None


def decode(sample, repaired=None):
    """Decode a raw sample into image and caption: (upright PIL RGB image, str). Raises BadSample. repaired: see decode_image."""
    data = _caption(sample)
    if data is None:
        raise BadSample("no caption")
    text = data.decode("utf-8", "replace")
    caption = " ".join(text.split())
    if not caption:
        raise BadSample("empty caption")
    image = decode_image(sample, repaired)
    if repaired is not None and text.encode() != data:
        repaired["caption not UTF-8"] += 1
    return image, caption


def decode_image(sample, repaired=None):
    """Decode the image of a raw sample: an upright PIL RGB image. Raises BadSample. repaired: a Counter; repairs by kind are added."""
    data = next((sample[extension] for extension in suffixes() if extension in sample), None)
    if data is None:
        further = any(name.rpartition(".")[2] in suffixes() for name in sample)  # as in cat.input.jpg
        raise BadSample("no image" + " (but in a file with a further dot)" * further)
    try:
        image, mode = decoded(io.BytesIO(data), lambda image: (to_rgb(image), image.mode))
    except TooLarge:
        raise BadSample("image too large") from None
    except (OSError, ValueError):
        raise BadSample("broken image") from None
    if min(image.size) < MIN_SIDE:
        raise BadSample("image too small")
    if repaired is not None:
        repaired.update(["rotated by EXIF"] * (TURNED in image.info) + [f"{mode} to RGB"] * (mode != "RGB"))
    return image


def read_pairs(path, report):
    """Yield the usable pairs of one shard: (key, PIL image, caption). Keys are unique across shards with different names."""
    for sample in read_samples(path, report):
        try:
            image, caption = decode(sample, report.repaired)
        except BadSample as bad:
            report.skipped[str(bad)] += 1
        else:
            report.pairs += 1
            yield f"{Path(path).stem}/{sample['__key__']}", image, caption


def first_images(paths, count, size):
    """The first `count` usable images, each cropped and resized by `center_crop`."""
    pairs = (pair for path in paths for pair in read_pairs(path, Report()))
    return [center_crop(image, size) for _, image, _ in itertools.islice(pairs, count)]


def parallel(function, items, label):
    """Ordered map over worker processes, with a progress bar. Raises an error if a worker is killed."""
    import joblib  # only `prepare` needs it

    workers = joblib.Parallel(min(len(items), joblib.cpu_count()), return_as="generator")
    yield from tqdm(workers(map(joblib.delayed(function), items)), label, len(items), mininterval=2)
