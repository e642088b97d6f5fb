"""Image-text pairs in webdataset shards, as img2dataset writes them. A sample has an image (jpg, jpeg, png or webp), a caption (txt, else
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

import webdataset as wds
from tqdm import tqdm

from .images import TooLarge, center_crop, decoded, to_rgb

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "caption", "text")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # of paths and captions: what data/pack.py makes shards of
MIN_SIDE = 8  # pixels; a smaller image is a tracking pixel or a broken download


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
    """Sorted shard paths from a path, a glob ("pairs/*.tar"), a brace range ("{00000..00331}.tar"), or a folder of
    tars. Raises FileNotFoundError if nothing matches, Incomplete if only some parts of a brace range do."""
    if spec and Path(spec).is_dir():
        spec = f"{glob.escape(str(spec))}/*.tar"
    parts = [str(spec)] if Path(spec).is_file() else wds.shardlists.expand_urls(str(spec))
    matches = {part: [part] if Path(part).is_file() else sorted(glob.glob(part)) for part in parts}
    missing = [part for part, names in matches.items() if not names]
    if len(missing) == len(matches):
        raise FileNotFoundError(f"no shards at {spec}: expected webdataset tars")
    if missing:
        raise Incomplete(f"{len(missing)} of {len(matches)} shards of {spec} do not exist, the first {missing[0]}")
    paths = [name for names in matches.values() for name in names]
    if paths[0].lower().endswith(TABLES):
        raise FileNotFoundError(f"{paths[0]} is no tar: `ovseg pack {paths[0]} FOLDER` makes shards of its pairs")
    return paths


def read_samples(path, report=None):
    """Yield the raw samples of one shard, {"__key__": str, "__url__": path, extension: bytes}. A truncated or broken
    tar ends early. If files or samples share a name, the first one is used. A report counts all three cases."""
    report, repeated, seen = report or Report(), set(), set()

    def skip_repeated(error):  # the only error of grouping: a second file of one name
        return not repeated.add(str(error.args[0]).split(".")[0])

    for sample in wds.tariterators.group_by_keys(_read_files(path, report), handler=skip_repeated):
        if sample["__key__"] in seen:  # its files are not contiguous in the tar
            report.skipped["key twice"] += 1
        else:
            seen.add(sample["__key__"])
            yield sample
    if repeated:
        report.skipped["file name twice"] += len(repeated)


def _read_files(path, report):
    """Yield the files of a tar, as webdataset's tar_file_iterator, but count a tar that is broken or does not end properly."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isreg() and not re.match("__[^/]*__($|/)", member.name):  # webdataset's own metadata
                    yield {"fname": member.name, "data": tar.extractfile(member).read(), "__url__": str(path)}
                tar.members = []  # which would grow
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read()  # zeros, unless tarfile mistook a broken header for the end
            if len(rest) < tarfile.BLOCKSIZE or any(rest):
                raise tarfile.ReadError
    except Exception:  # tarfile and decompressors raise many kinds of error on broken bytes
        report.skipped["truncated tar"] += 1


def decode(sample, repaired=None):
    """Decode a raw sample into image and caption: (upright PIL RGB image, str). Raises BadSample. repaired: see decode_image."""
    try:
        data = next((sample[name] for name in CAPTIONS if name in sample), None)
        data = json.loads(sample["json"])["caption"].encode() if data is None else data
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # no json, or no caption string in it
        raise BadSample("no caption") from None
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
    data = next((sample[extension] for extension in IMAGES if extension in sample), None)
    if data is None:
        raise BadSample("no image")
    try:
        image, mode, turned = decoded(io.BytesIO(data), lambda image: (to_rgb(image), image.mode, image.getexif().get(0x0112, 1) != 1))
    except TooLarge:
        raise BadSample("image too large") from None
    except (OSError, ValueError):
        raise BadSample("broken image") from None
    if min(image.size) < MIN_SIDE:
        raise BadSample("image too small")
    if repaired is not None:
        repaired.update(["rotated by EXIF"] * turned + [f"{mode} to RGB"] * (mode != "RGB"))
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
