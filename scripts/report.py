"""Write report/: a page for each executed notebook, the report, and a table of all runs. Pages need no scripts and no network."""

import json
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

FOLDED = "{% extends 'lab/index.html.j2' %}{% block input %}<details><summary>code</summary>{{ super() }}</details>{% endblock %}"
HEAD = """<!DOCTYPE html><meta charset="utf-8"><title>Report</title><style>body { font: 15px sans-serif; margin: 2em }
img { max-width: 100% } table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: 2px 8px }</style>"""


def main(runs=Path("runs"), results=Path("results"), out=Path("report")):
    notebooks = {path.stem: path for path in sorted(runs.glob("*.ipynb"))}
    if not notebooks:
        sys.exit(f"{runs} holds no executed notebook: `dvc repro` makes them")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(results / "figures", out / "figures")
    exporter = HTMLExporter(extra_loaders=[DictLoader({"folded.html.j2": FOLDED})], template_file="folded.html.j2")
    links, rows = {name: f"[{name}]({quote(name)}.html)" for name in notebooks}, []
    for name, path in notebooks.items():
        (out / f"{name}.html").write_text(re.sub("(?s)<script.*?</script>", "", exporter.from_filename(str(path))[0]), encoding="utf-8")
    for result in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("runs/*.json"))):
        unit = dict(result["parameters"])["segment.unit"]
        miou = {name: by_unit[unit] for name, by_unit in result["miou"].items()}
        rows.append({"run": result["run"]} | miou | {"notebook": links.pop(result["run"], "")})
    table, others = pd.DataFrame(rows).to_markdown(index=False, floatfmt=".1f"), "\n".join(f"- {link}" for link in links.values())
    index = f"# Runs\n\n[Do the findings hold?](REPORT.html) mIoU in percent, by each run's own unit:\n\n{table}\n\n{others}\n"
    for name, text in {"index": index, "REPORT": (results / "REPORT.md").read_text(encoding="utf-8")}.items():
        (out / f"{name}.html").write_text(HEAD + markdown2html(text), encoding="utf-8")


if __name__ == "__main__":
    main()
