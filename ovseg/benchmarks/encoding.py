"""Encodes the class names and windows of benchmarks once, for all evaluations."""

import shutil
from pathlib import Path

from tqdm import tqdm

from ..clip.encode import ArrayWriter, digest, encode_windows, files_read
from ..data import images, shards
from ..data.files import source_digest
from ..segmentation import resizing, windows
from . import datasets


def encode_benchmarks(clip, benchmarks, segment, folder, modes):
    """Encode the class names of each benchmark into NAME/classes.npy, and its windows in each mode into NAME/MODE.npy.

    segment: schema.Segment. modes: of dense.DENSE_MODES; none if windows are not cached. Windows of benchmarks with the same pictures
    (things and scenes; VOC 21 and VOC20) are stored once, in the folder of the first of them. Other files in the folder are deleted.
    """
    folder, places = Path(folder), {}  # places: {source: folder of its windows}
    for benchmark in benchmarks:
        place = folder / benchmark.name
        made_with = {"clip": clip.fingerprint, "names": benchmark.named, "templates": segment.templates}
        classes = ArrayWriter(place / "classes.npy", (clip.width,), made_with, "float32")
        if not classes.complete:
            classes.append(clip.embed_classes(benchmark.named, segment.templates))
            classes.finish()
        if modes and places.setdefault(benchmark.source, place) == place:
            made_with = segment.model_dump(include={"short_side", "max_ratio", "resize", "window", "stride"})
            made_with["code"] = source_digest(datasets, images, resizing, shards, windows)
            made_with["pictures"] = digest(files_read(benchmark.files))
            encode_windows(clip, _windows(benchmark, segment), modes, segment.window // clip.patch, segment.batch, made_with, place)
    names = [benchmark.name for benchmark in benchmarks]
    arrays = {folder / name / "classes" for name in names} | {place / mode for place in places.values() for mode in modes}
    for other in folder.iterdir():
        if other.name not in names:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    for other in folder.glob("*/*"):
        if other.with_suffix("") not in arrays:
            other.unlink()


def _windows(benchmark, segment):
    """Yield the windows of a benchmark's pictures, in order."""
    for _, image, _ in tqdm(benchmark, f"encode {benchmark.name}", mininterval=2):
        yield from windows.cut_windows(image, segment)[0]
