"""The pictures a command reads and the files it writes, determined before any work. Has no slow imports."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # in a folder; a file given by name may have any


@dataclass(frozen=True)
class Job:
    """A picture and its output files: the overlay, the label map, the areas."""

    picture: Path
    overlay: Path
    labels: Path
    areas: Path

    @property
    def outputs(self):
        return self.overlay, self.labels, self.areas


def gather(inputs):
    """List the pictures named by files, folders and glob patterns, each once, in the given order: a list of Path.

    A folder gives its pictures (by SUFFIXES), sorted, without subfolders and hidden files. Raises FileNotFoundError for an input that
    does not exist, and for a folder or pattern without pictures.
    """
    found = {}
    for name in map(str, inputs):
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
            missing = f"{name}: no pictures in this folder ({', '.join(suffix[1:] for suffix in SUFFIXES)})"
        elif path.exists():
            files, missing = [path], None
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True))
            missing = f"{name}: no file matches" if glob.has_magic(name) else f"{name} does not exist"
        files = [file for file in files if not file.is_dir()]
        if not files:
            raise FileNotFoundError(missing)
        found |= {os.path.abspath(file): file for file in files if os.path.abspath(file) not in found}
    return list(found.values())


def plan_files(pictures, folder, force=False):
    """Plan the output files of each picture in a folder: a list of Job.

    Raises ValueError if two pictures have the same name or an output file is one of the pictures, FileExistsError if an output file
    exists (unless force), NotADirectoryError if the folder is a file.
    """
    folder, made = Path(folder), {}
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write into")
    for picture in pictures:
        job = Job(picture, *(folder / f"{picture.stem}.{ending}" for ending in ("overlay.png", "labels.png", "json")))
        if job.areas in made:
            twice = f"{made[job.areas].picture} and {picture}"
            raise ValueError(f"{twice} would both be written to {job.areas}: segment them apart, with another --out")
        made[job.areas] = job
    read = {picture.resolve() for picture in pictures}
    if taken := [path for job in made.values() for path in job.outputs if path.resolve() in read]:
        raise ValueError(f"{taken[0]} would be written, and is one of the pictures: choose another --out")
    there = [path for job in made.values() for path in job.outputs if path.exists()]
    if there and not force:
        others = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]} exists already{others}; --force replaces what is there")
    return list(made.values())
