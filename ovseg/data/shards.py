"""Image-text pairs in webdataset shards, and the handling of bad samples.

A sample has an image (jpg, jpeg, png or webp), a caption (txt, else caption or text, else "caption" in its json) and optional other
files (label maps), as img2dataset writes them. Unusable samples are skipped and counted by kind; repairable ones are repaired and
counted. Neither ends a run, unless more than `max_bad_fraction` of all samples are bad.
"""

import glob
import io
import itertools
import json
import multiprocessing
import os
import tarfile
import threading
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import webdataset as wds
from PIL import Image
from tqdm import tqdm

from .images import center_crop, rgb

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "caption", "text")
MIN_SIDE = 8  # pixels; a smaller image is a tracking pixel or a broken download
MAX_PIXELS = 100_000_000  # larger images are rejected before decoding


class BadSample(Exception):
    """A sample that cannot be used; the message is its kind, for counting."""


class Incomplete(FileNotFoundError):
    """Only some shards of a brace range exist."""


@dataclass
class Report:
    """Counts of usable pairs in shards, and of skipped and repaired samples by kind."""

    pairs: int = 0
    skipped: Counter = field(default_factory=Counter)
    repaired: Counter = field(default_factory=Counter)

    def __add__(self, other):
        return Report(self.pairs + other.pairs, self.skipped + other.skipped, self.repaired + other.repaired)

    @property
    def bad_fraction(self):
        bad = sum(self.skipped.values())
        return bad / max(1, bad + self.pairs)

    @property
    def samples(self):
        """Number of samples found, usable or not."""
        return self.pairs + sum(self.skipped.values()) - self.skipped["truncated tar"]

    def as_dict(self):
        return {"pairs": self.pairs, "skipped": dict(self.skipped), "repaired": dict(self.repaired)}

    @classmethod
    def of(cls, counts):
        """Restore a report from the output of `as_dict`."""
        return cls(counts["pairs"], Counter(counts["skipped"]), Counter(counts["repaired"]))


def expand(spec):
    """Sorted shard paths from a path, a glob ("pairs/*.tar"), a brace range ("{00000..00331}.tar"), or a folder of tars.

    Raises FileNotFoundError if nothing matches, Incomplete if only some parts of a brace range do.
    """
    if spec and Path(spec).is_dir():
        spec = f"{glob.escape(str(spec))}/*.tar"
    parts = [str(spec)] if Path(spec).is_file() else wds.shardlists.expand_urls(str(spec))
    found = {part: [part] if Path(part).is_file() else sorted(glob.glob(part)) for part in parts}
    missing = [part for part, names in found.items() if not names]
    if len(missing) == len(found):
        raise FileNotFoundError(f"no shards at {spec}: expected webdataset tars")
    if missing:
        raise Incomplete(f"{len(missing)} of {len(found)} shards of {spec} do not exist, the first {missing[0]}")
    return [name for names in found.values() for name in names]


def read_samples(path, report=None):
    """Yield the raw samples of one shard, {"__key__": str, extension: bytes}.

    A truncated or broken tar ends early. If files or samples share a name, the first one is used. A report counts all three cases.
    """
    report, twice = report or Report(), set()

    def judge(error):
        if isinstance(error, ValueError) and "duplicate file name" in str(error):
            twice.add(str(error.args[0]).split(".")[0])
            return True  # continue with the next file
        report.skipped["truncated tar"] += 1
        return False  # what follows in a broken tar cannot be read

    broken, seen = report.skipped["truncated tar"], set()
    for sample in wds.tariterators.tarfile_samples([{"url": str(path)}], handler=judge):
        if sample["__key__"] in seen:  # its files are not contiguous in the tar
            report.skipped["key twice"] += 1
            continue
        seen.add(sample["__key__"])
        yield sample
    report.skipped["file name twice"] += len(twice)
    if report.skipped["truncated tar"] == broken and not _ends(path):
        report.skipped["truncated tar"] += 1
    report.skipped += Counter()  # drops kinds with a count of 0


def _ends(path):
    """Whether a tar is complete, i.e. only zeros follow its last member. tarfile mistakes a broken header for the end."""
    try:
        with tarfile.open(path) as tar:
            tar.getmembers()
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read()
            return len(rest) >= tarfile.BLOCKSIZE and not any(rest)
    except (tarfile.TarError, OSError, EOFError):
        return False


def decode(sample, report=None):
    """Decode a raw sample into image and caption: (upright PIL RGB image, str). Raises BadSample."""
    repaired = Counter()
    data = _caption(sample)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        repaired["caption not UTF-8"] += 1
    caption = " ".join(text.split())
    if not caption:
        raise BadSample("empty caption")
    image = decode_image(sample, repaired)
    if report is not None:
        report.repaired += repaired
    return image, caption


def _caption(sample):
    """The caption of a raw sample, bytes: its txt, else its caption or text, else `caption` in its json. Raises BadSample."""
    if name := next((name for name in CAPTIONS if name in sample), None):
        return sample[name]
    try:
        return json.loads(sample["json"])["caption"].encode()
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # no json, or no caption string in it
        raise BadSample("no caption") from None


def decode_image(sample, repaired=None):
    """Decode the image of a raw sample into an upright PIL RGB image. Raises BadSample."""
    data = next((sample[extension] for extension in IMAGES if extension in sample), None)
    if data is None:
        raise BadSample("no image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings of size and broken EXIF; both are handled below
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise BadSample("image too large")
            if min(image.size) < MIN_SIDE:
                raise BadSample("image too small")
            image.load()
            upright = rgb(image)
    except Image.DecompressionBombError:
        raise BadSample("image too large") from None
    except BadSample:
        raise
    except Exception:  # decoders raise many kinds of error on corrupt bytes
        raise BadSample("broken image") from None
    if repaired is not None:
        if image.getexif().get(0x0112, 1) != 1:
            repaired["rotated by EXIF"] += 1
        if image.mode != "RGB":
            repaired[f"{image.mode} to RGB"] += 1
    return upright


def pairs(path, report):
    """Yield the usable pairs of one shard: (key, PIL image, caption). Keys are unique across shards with different names."""
    for sample in read_samples(path, report):
        try:
            image, caption = decode(sample, report)
        except BadSample as bad:
            report.skipped[str(bad)] += 1
            continue
        report.pairs += 1
        yield f"{Path(path).stem}/{sample['__key__']}", image, caption


def first(paths, count, size):
    """The first `count` usable images, each cropped and resized by `center_crop`."""
    found = (image for path in paths for _, image, _ in pairs(path, Report()))
    return [center_crop(image, size) for image in itertools.islice(found, count)]


def parallel(function, items, label):
    """Ordered map over worker processes, with a progress bar. Workers are spawned: forking a process with threads may hang."""
    workers = min(len(items), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        yield from tqdm(pool.map(function, items), label, len(items), mininterval=2)


def _end_with_parent():
    """Make this worker exit when its parent process is killed; otherwise it would wait for work forever."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
