"""Makes webdataset shards of pictures with captions: a folder with NAME.txt beside each picture, a table, or COCO's captions."""

import csv
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import webdataset as wds
from tqdm import tqdm

from . import shards
from .images import list_pictures


def pack(source, out, columns=("path", "caption"), images=None):
    """Write the pairs of `read_rows` to shards in a new folder, in a fixed random order: a stream mixes only pairs of near shards. Returns
    (number of pairs, {kind: paths of unusable pairs}). Raises FileExistsError, ValueError without usable pairs, and errors of read_rows."""
    out, rows = Path(out), list(read_rows(Path(source), columns, images))
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    random.Random(0).shuffle(rows)
    part = out.with_name(f"{out.name}.part")  # becomes `out` when it is complete
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    pairs, bad = 0, defaultdict(list)
    with wds.ShardWriter(f"{part}".replace("%", "%%") + "/%05d.tar", maxcount=1000, verbose=0, mtime=0) as writer:
        for path, caption in tqdm(rows, "pack", disable=None):
            try:
                sample = {path.suffix[1:].lower(): path.read_bytes()} | ({} if caption is None else {"txt": caption})
                shards.decode(sample)
            except (shards.BadSample, OSError, ValueError) as error:  # ValueError: of characters that no path has
                bad[getattr(error, "strerror", None) or str(error)].append(str(path))
            else:
                writer.write({"__key__": f"{pairs:09}", "json": {"path": str(path)}} | sample)
                pairs += 1
    if not pairs:
        shutil.rmtree(part)
        raise ValueError("no usable pair" + "".join(f"; {len(paths)} {kind}, such as {paths[0]}" for kind, paths in bad.items()))
    part.rename(out)
    return pairs, dict(bad)


def read_rows(source, columns, images=None):
    """Yield (Path of the picture, caption as bytes or None) of each pair. source: Path of a folder or of a file of a kind in shards.TABLES.
    columns: of path and caption. images: what paths are relative to, by default the file's folder. Raises OSError and ValueError."""
    if source.is_dir():
        pictures, others = list_pictures(source)
        alone = {path for path in others if path.suffix == ".txt"} - {path.with_suffix(".txt") for path in pictures}  # as beside a HEIC
        for path in [*pictures, *sorted(alone)]:
            caption = path.with_suffix(".txt")
            yield path, caption.read_bytes() if caption.is_file() else None
        return
    for number, row in enumerate(read_table(source, columns)):
        if number == 0 and (missing := [column for column in columns if column not in row]):
            raise ValueError(f"no column {missing[0]!r} among {', '.join(row)}: --columns names those of path and caption")
        if None in row:
            raise ValueError(f"row {number + 1} has more fields than there are columns: quotes must enclose a caption with commas or tabs")
        path, caption = (str(row.get(column) or "") for column in columns)
        yield Path(images or source.parent, path), caption.encode("utf-8", "surrogateescape")


def read_table(source, columns):
    """Yield the rows of a file as dicts. COCO's json has one for each caption, with the given columns."""
    kind = source.suffix.lower()
    if kind not in shards.TABLES:
        raise ValueError(f"must be a folder, or a file that ends in {', '.join(shards.TABLES)}")
    if kind == ".parquet":
        try:
            from pyarrow.parquet import ParquetFile  # of no other use here, and large: not among the requirements
        except ImportError:
            raise ValueError("needs `pip install pyarrow`") from None
        yield from (row for batch in ParquetFile(source).iter_batches() for row in batch.to_pylist())
        return
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if kind in (".csv", ".tsv"):
            rows = csv.DictReader(file, delimiter="," if kind == ".csv" else "\t", strict=True)
            try:
                yield from rows
            except csv.Error as error:  # without `strict`, an open quote would swallow the rows that follow
                raise ValueError(f"after line {rows.line_num}: {error}: are captions with quotes enclosed, their quotes doubled?") from None
            return
        try:
            if kind == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
                return
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error} of {error.doc[:60]!r}") from None
    if not (isinstance(content, dict) and {"images", "annotations"} <= content.keys()):
        raise ValueError("no `images` and `annotations`, as COCO's captions have")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    yield from (dict(zip(columns, (names.get(a["image_id"]), a.get("caption")), strict=True)) for a in content["annotations"])
