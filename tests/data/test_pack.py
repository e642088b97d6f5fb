"""`ovseg pack`: pictures with captions in a folder, a table or COCO's json become shards that are read like any others."""

import json
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import encoded, picture, save

from ovseg import cli
from ovseg.data import shards

CAPTIONS = {f"sub/p.{n}.jpg" if n % 2 else f"q, {n}.PNG": f'a "cat", or {n} dögs' for n in range(5)}
FRAME = pd.DataFrame(CAPTIONS.items(), columns=["path", "caption"])
COCO = {"images": [{"id": 7 * n, "file_name": name} for n, name in enumerate(CAPTIONS)]}
COCO |= {"annotations": [{"image_id": 7 * n, "caption": caption} for n, caption in enumerate(CAPTIONS.values())]}
TABLES = {
    "list.csv": (FRAME.to_csv(), "--images mine"),
    "list.tsv": (FRAME.set_axis(["file", "title"], axis=1).to_csv(sep="\t"), "--images mine --columns file title"),
    "mine/list.jsonl": (FRAME.to_json(orient="records", lines=True), ""),
    "mine/list.json": (json.dumps(COCO), ""),
    "mine": ("", ""),
}


@pytest.fixture
def pack(tmp_path, monkeypatch):  # runs `ovseg pack` in a folder with the pictures of CAPTIONS in its folder `mine`
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(CAPTIONS):
        save(tmp_path / "mine" / name, encoded(picture(16, 12, n), "JPEG" if n % 2 else "PNG"))
    return lambda arguments: CliRunner().invoke(cli.main, ["pack", *arguments.split()])


@pytest.mark.parametrize("source", TABLES)
def test_pairs_are_read_from_the_shards_as_they_were_given(pack, source):
    content, options = TABLES[source]
    for path, text in {source: content}.items() if content else CAPTIONS.items():
        save(Path(path) if content else Path(source, path).with_suffix(".txt"), text)
    for out in ("100%/out", "again"):
        done = pack(f"{source} {out} {options}")
        assert done.exit_code == 0 and done.stdout == f"5 pairs in {out}\n", done.output
    found = {}
    for sample in shards.read_samples("100%/out/00000.tar"):
        path = Path(json.loads(sample["json"])["path"])
        assert sample["__key__"] == f"{len(found):09}" and sample[path.suffix[1:].lower()] == path.read_bytes()
        found[str(path.relative_to("mine"))] = shards.decode(sample)[1]
    assert found == CAPTIONS and list(found) != sorted(found)  # in another order, but always the same
    assert Path("again/00000.tar").read_bytes() == Path("100%/out/00000.tar").read_bytes()


def test_pairs_that_cannot_be_used_are_counted_by_kind_and_named_and_a_shard_holds_a_thousand(pack):
    paths = ["absent.jpg", "list.jsonl", "a\0.jpg", None, "absent.jpg"]
    rows = [("q, 0.PNG", " "), *((path, "a cat") for path in paths), *[("q, 0.PNG", "a cat")] * 1001]
    save(Path("mine/list.jsonl"), pd.DataFrame(rows, columns=["path", "caption"]).to_json(orient="records", lines=True))
    done, absent = pack("mine/list.jsonl out"), "mine/absent.jpg, mine/absent.jpg"
    assert done.exit_code == 1 and done.stdout == "1001 pairs in out\n"
    lines = {line.removeprefix("left out: ") for line in done.stderr.splitlines() if line.startswith("left out: ")}
    unnamed = {"1 embedded null byte: mine/a\0.jpg", "1 Is a directory: mine"}
    assert unnamed < lines and lines - unnamed == {
        "1 empty caption: mine/q, 0.PNG",
        "1 no image: mine/list.jsonl",
        f"2 No such file or directory: {absent}",
    }
    assert [len(tarfile.open(path).getnames()) // 3 for path in shards.expand("out")] == [1000, 1]


def test_captions_without_a_picture_that_pillow_reads_are_counted_and_hidden_pictures_left_out(pack):
    files = {"a.jpg": Path("mine/q, 0.PNG").read_bytes(), "a.txt": "a cat", "b.HEIC": "", "b.txt": "a dog", "._a.jpg": ""}
    for name, content in files.items():
        save(Path("own", name), content)
    done = pack("own out")
    assert (done.exit_code, done.stdout) == (1, "1 pairs in out\n") and done.stderr.splitlines()[-1] == "left out: 1 no image: own/b.txt"


def test_what_cannot_be_packed_is_refused_in_one_line(pack, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source, content, message in [
        ("a.csv", "file,title\nabsent.jpg,a cat\n", "no column 'path' among file, title: --columns names those of path and caption"),
        ("a.csv", "path,caption\na.jpg,a cat\n", "no usable pair; 1 No such file or directory, such as a.jpg"),
        ("a.json", '{"images": []}', "no `images` and `annotations`, as COCO's captions have"),
        ("a.csv", "path,caption\na.jpg,a cat, a dog\n", "row 1 has more fields than there are columns: quotes must enclose"),
        ("a.tsv", 'path\tcaption\na.jpg\t"a cat\nb.jpg\ta dog\n', "after line 1: unexpected end of data: are captions with"),
        ("a.csv", f"path,caption\na.jpg,{'a' * 200000}\n", "after line 1: field larger than field limit"),
        ("a.jsonl", '{"path": "a.jpg", "caption": "a cat"}\n\n{"path"}\n', "of '{\"path\"}\\n'"),
        ("a.json", '{"images": [], "annotations": [{"image_id": 1}]}', "no usable pair; 1 Is a directory, such as ."),
        ("a.parquet", "", "needs `pip install pyarrow`"),
        ("a.xlsx", "", "must be a folder, or a file that ends in .csv, .tsv, .jsonl, .json, .parquet"),
    ]:
        save(Path(source), content)
        done = pack(f"{source} out")
        assert done.exit_code == 2 and message in done.stderr.splitlines()[-1].removeprefix(f"Error: {source}: ")
    assert "mine: mine exists already" in pack("mine mine").stderr
    assert "mine: no usable pair; 5 no caption, such as mine/" in pack("mine out").stderr and not list(Path().glob("out*"))
    with pytest.raises(FileNotFoundError, match=r"^a.csv is no tar: `ovseg pack a.csv FOLDER` makes shards of its pairs$"):
        shards.expand("a.csv")  # as data.shards
