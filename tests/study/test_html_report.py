"""`make report`: what links to what, and that no page runs or fetches anything."""

import json
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts/report.py"))["main"]


def test_pages_link_to_each_other_and_load_nothing(tmp_path):
    (tmp_path / "results/figures").mkdir(parents=True)
    (tmp_path / "results/runs").mkdir()
    (tmp_path / "results/figures/a.png").write_bytes(b"a picture")
    (tmp_path / "results/REPORT.md").write_text("# Findings\n\n| a | b |\n|:--|:--|\n| **holds** | 1 |\n\n![a](figures/a.png)\n")
    for name, miou in {"mgca.k=0.2": 70, "default": 60}.items():
        result = {"run": name, "parameters": [["segment.unit", "pixel"]], "miou": {"street": {"pixel": miou, "group": 99}}}
        (tmp_path / f"results/runs/{name}.json").write_text(json.dumps(result))
    for name in ("run/mgca.k=0.2", "run/default", "prepare", "sources/run"):
        path = tmp_path / f"runs/{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [nbformat.v4.new_markdown_cell("# A run with $x^2$"), nbformat.v4.new_code_cell("secret = 1", execution_count=1)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    out = tmp_path / "report"
    main(tmp_path / "runs", tmp_path / "results", out)
    pages = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}
    assert set(pages) == {"index.html", "REPORT.html", "prepare.html", "run/default.html", "run/mgca.k=0.2.html"}
    cells = re.findall(r"<td[^>]*>(.*?)</td>", pages["index.html"])
    assert cells[0:5:3] == ["default", "mgca.k=0.2"] and [cell.strip() for cell in cells[1:5:3]] == ["60", "70"]
    links = [(page, link) for page, text in pages.items() for link in re.findall(r'(?:href|src)="([^"#]+)"', text)]
    assert len(links) == 5 and all((out / page).parent.joinpath(unquote(link)).is_file() for page, link in links)
    for text in pages.values():
        assert not re.search(r"<script|@import|(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//", text)
    assert re.search(r"<details><summary>code</summary>.*secret.*</details>", pages["run/default.html"], re.DOTALL)


def test_missing_notebooks_are_an_error_that_says_what_makes_them(tmp_path):
    with pytest.raises(SystemExit, match="dvc repro"):
        main(tmp_path, tmp_path, tmp_path / "report")
