"""`make report`: what links to what, and that no page runs or fetches anything."""

import json
import re
import runpy
from urllib.parse import unquote

import nbformat
import pytest
from tiny import ROOT, save

main = runpy.run_path(str(ROOT / "scripts/report.py"))["main"]


def test_pages_link_to_each_other_and_load_nothing(tmp_path):
    with pytest.raises(SystemExit, match="dvc repro"):
        main(tmp_path / "runs", tmp_path / "results", tmp_path / "report")
    save(tmp_path / "results/figures/a.png", "a picture")
    save(tmp_path / "results/REPORT.md", "# Findings\n\n| a | b |\n|:--|:--|\n| **holds** | 1 |\n\n![a](figures/a.png)\n")
    for name, miou in {"mgca.k=0.2": 70, "default": 60}.items():
        result = {"run": name, "parameters": [["segment.unit", "pixel"]], "miou": {"street": {"pixel": miou, "group": 99}}}
        save(tmp_path / f"results/runs/{name}.json", json.dumps(result))
    cells = [nbformat.v4.new_markdown_cell("# A run with $x^2$"), nbformat.v4.new_code_cell("secret = 1", execution_count=1)]
    for name in ("mgca.k=0.2", "default", "prepare", "sources/run"):
        save(tmp_path / f"runs/{name}.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    out = tmp_path / "report"
    main(tmp_path / "runs", tmp_path / "results", out)
    pages = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}
    assert set(pages) == {"index.html", "REPORT.html", "prepare.html", "default.html", "mgca.k=0.2.html"}
    cells = [cell.strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", pages["index.html"])]
    assert cells[:2] == ["default", "60"] and cells[3:5] == ["mgca.k=0.2", "70"]
    links = [(page, link) for page, text in pages.items() for link in re.findall(r'(?:href|src)="([^"#]+)"', text)]
    assert len(links) == 5 and all((out / page).parent.joinpath(unquote(link)).is_file() for page, link in links)
    assert re.search(r"<details><summary>code</summary>.*secret.*</details>", pages["default.html"], re.DOTALL)
    for text in pages.values():
        assert not re.search(r"<script|@import|(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//", text)
