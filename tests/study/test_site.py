"""The site of all runs: what links to what, and that no page fetches or runs anything."""

import base64
import io
import json
import re
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from PIL import Image

from ovseg.study import site


def png(width, height):
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def executed(path, *sizes):
    """Write an executed notebook whose outputs are pictures of those sizes."""
    data = [{"image/png": base64.b64encode(png(*size)).decode()} for size in sizes]
    outputs = [nbformat.v4.new_output("display_data", data=of_one) for of_one in data]
    cells = [
        nbformat.v4.new_markdown_cell("# A run with $x^2$"),
        nbformat.v4.new_code_cell("secret = 1", outputs=outputs, execution_count=1),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in (
        "evaluate",
        "trained/mgca.k=0,train.seeds=1/evaluate",
        "trained/mgca.k=0,train.seeds=1/train",
        "untrained/clip",
        "sources/train",
    ):
        executed(folder / f"runs/{name}.ipynb", (40, 30), (200, 150))
    results = {"mgca": ("default", 60), "trained/mgca.k=0,train.seeds=1": ("trained", 70), "untrained/clip": ("untrained", 10)}
    for run, (kind, miou) in results.items():
        path = folder / f"results/runs/{run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"run": run, "kind": kind, "parameters": [["segment.unit", "pixel"]], "miou": {"street": {"pixel": miou, "group": 99}}}
        path.write_text(json.dumps(found))
    (folder / "results/figures").mkdir()
    (folder / "results/figures/a.png").write_bytes(png(9, 9))
    (folder / "results/REPORT.md").write_text("# Findings\n\n| a | b |\n|:--|:--|\n| **holds** | 1 |\n\n![a](figures/a.png)\n")
    assert site.write_site(folder / "runs", folder / "results", folder / "report") == 4
    return folder / "report"


def test_the_index_shows_each_run_by_its_own_unit_the_best_first(report):
    text = (report / "index.html").read_text()
    assert re.findall(r"<b>(.*?)</b><br>mIoU: (.*?)</a>", text) == [
        ("trained/mgca.k=0,train.seeds=1", "street 70.0"),
        ("mgca", "street 60.0"),
        ("untrained/clip", "street 10.0"),
    ]
    assert text.count("data:image/png") == 3 and '<li><a href="trained/mgca.k%3D0%2Ctrain.seeds%3D1/train.html">' in text


def test_every_link_leads_to_a_file(report):
    links = 0
    for page in report.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#]+)"', page.read_text()):
            if not link.startswith("data:"):
                assert (page.parent / unquote(link)).is_file(), (page, link)
                links += 1
    assert links >= 4 + 1 + 1 + 4  # cards and the train notebook, the report, its figure, the way back


def test_no_page_runs_or_fetches_anything(report):
    for page in report.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script|@import|(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//", text), page


def test_the_title_of_a_page_is_the_name_of_its_run(report):
    page = (report / "trained/mgca.k=0,train.seeds=1/evaluate.html").read_text()
    assert "<title>trained/mgca.k=0,train.seeds=1/evaluate</title>" in page


def test_code_is_folded(report):
    text = (report / "evaluate.html").read_text()
    assert re.search(r"<details><summary>code</summary>.*secret.*</details>", text, re.DOTALL) and text.count("<img") == 2


def test_a_picture_is_kept_at_its_size_and_a_thumbnail_shows_the_largest(report):
    small = site.smaller(png(200, 150))
    assert Image.open(io.BytesIO(small)).size == (200, 150) and len(small) < len(png(200, 150))
    assert Image.open(io.BytesIO(site.thumbnail(png(200, 900)))).size == site.THUMBNAIL


def test_without_notebooks_it_says_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        site.write_site(tmp_path, tmp_path, tmp_path / "report")
