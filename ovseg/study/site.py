"""A shareable HTML report: `python -m ovseg.study.site` builds report/ from the executed notebooks in runs/ and results/REPORT.md.

report/index.html shows every run with a picture and its mIoU. All pages open from disk, without scripts or network access.
"""

import argparse
import base64
import html
import io
import json
import math
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from PIL import Image
from tqdm import tqdm

from .. import params

EVALUATION = "evaluate"  # the notebook that shows a trained run's label maps
THUMBNAIL = 360, 200  # pixels
STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 24px auto; padding: 0 16px; }
.runs { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.runs a { border: 1px solid #bbb; border-radius: 4px; padding: 8px; color: inherit; text-decoration: none; overflow-wrap: anywhere; }
.runs a:hover, .runs a:focus { border-color: #0b4f8a; box-shadow: 0 0 0 1px #0b4f8a; }
.runs img { width: 100%; display: block; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: 2px 8px; } img { max-width: 100%; }
</style>"""
# nbconvert's HTML template without scripts, with foldable code, and with progress bars not shown in red as errors.
FOLDED = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_css -%}{{ super() }}
<style>.jp-RenderedText[data-mime-type] { background: none !important; }</style>
{%- endblock html_head_css -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block jupyter_widgets -%}{%- endblock jupyter_widgets -%}
{%- block input -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock input -%}
{%- block in_prompt -%}{%- endblock in_prompt -%}
"""


def smaller(png):
    """Reduce a PNG to at most 256 colours; returns the original if that is not smaller. Bytes -> bytes."""
    out, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(png, out.getvalue(), key=len)


def pictures(notebook):
    """The outputs of a notebook that hold a PNG, in order: data of nbformat."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if "image/png" in output.get("data", {})]


def page(path, back, title):
    """An executed notebook as one HTML page with a title, and the PNG of its largest picture or None. back: URL of the index."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # widgets need scripts
    found = [base64.b64decode(data["image/png"]) for data in pictures(notebook)]
    for data, png in zip(pictures(notebook), found, strict=True):
        data["image/png"] = base64.b64encode(smaller(png)).decode()
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"[all runs]({back})"))
    exporter = HTMLExporter(extra_loaders=[DictLoader({"folded.html.j2": FOLDED})], template_file="folded.html.j2")
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return body, max(found, key=lambda png: math.prod(Image.open(io.BytesIO(png)).size), default=None)


def thumbnail(png):
    """The upper part of a picture, small: PNG bytes -> PNG bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    height = min(image.height, image.width * THUMBNAIL[1] // THUMBNAIL[0])
    out = io.BytesIO()
    image.crop((0, 0, image.width, height)).resize(THUMBNAIL, Image.Resampling.LANCZOS).save(out, "PNG")
    return smaller(out.getvalue())


def notebook_of(result, known):
    """The notebook (name below runs/, without suffix) that evaluated a run, or None. known: all names. result: from runs.make_result."""
    wanted = [EVALUATION] if result["kind"] == "default" else [result["run"], f"{result['run']}/{EVALUATION}"]
    return next((name for name in wanted if name in known), None)


def write_site(runs="runs", results="results", out="report"):
    """Write the site. Returns the number of notebooks shown. Raises FileNotFoundError if there are none."""
    runs, results, out = Path(runs), Path(results), Path(out)
    notebooks = {
        path.relative_to(runs).with_suffix("").as_posix(): path
        for path in sorted(runs.rglob("*.ipynb"))
        if path.relative_to(runs).parts[0] != "sources"
    }
    if not notebooks:
        raise FileNotFoundError(f"{runs} holds no executed notebook: `dvc repro` makes them")
    shutil.rmtree(out, ignore_errors=True)
    thumbnails = {}
    for name, path in tqdm(notebooks.items(), "pages"):
        target = out / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        body, picture = page(path, "../" * name.count("/") + "index.html", name)
        target.write_text(body)
        if picture is not None:
            thumbnails[name] = base64.b64encode(thumbnail(picture)).decode()
    (out / "index.html").write_text(index(_results(results), notebooks, thumbnails, _report(results, out)))
    return len(notebooks)


def _results(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "runs").rglob("*.json"))]


def _report(results, out):
    """Convert REPORT.md and its figures to a page. Returns whether there is a report."""
    if not (results / "REPORT.md").is_file():
        return False
    (out / "REPORT.html").write_text(_document("Report", markdown2html((results / "REPORT.md").read_text())))
    if (results / "figures").is_dir():
        shutil.copytree(results / "figures", out / "figures")
    return True


def _document(title, body):
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>{STYLE}'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def index(results, notebooks, thumbnails, report):
    """The gallery: one card per result with a notebook, best first, and a list of the other notebooks."""

    def value(result):
        unit = dict(result["parameters"])["segment.unit"]
        return {name: by_unit[unit] for name, by_unit in result["miou"].items()}

    cards, shown = [], set()
    for result in sorted(results, key=lambda result: -sum(value(result).values())):
        name = notebook_of(result, notebooks)
        if name is None:
            continue
        shown.add(name)
        picture = f'<img alt="label maps" src="data:image/png;base64,{thumbnails[name]}">' if name in thumbnails else ""
        scores = ", ".join(f"{html.escape(benchmark)} {miou:.1f}" for benchmark, miou in value(result).items())
        cards.append(f'<a href="{quote(name)}.html">{picture}<b>{html.escape(result["run"])}</b><br>mIoU: {scores}</a>')
    others = "".join(f'<li><a href="{quote(name)}.html">{html.escape(name)}</a></li>' for name in notebooks if name not in shown)
    link = '<p><a href="REPORT.html">The report: do the findings hold?</a></p>' if report else ""
    body = f"<h1>Runs</h1>{link}<p>mIoU in percent, mean over seeds, by each run's own unit; the best first.</p>"
    return _document("Runs", f'{body}<div class="runs">{"".join(cards)}</div><h2>Other notebooks</h2><ul>{others}</ul>')


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ovseg.study.site", description="Make one folder of HTML of all runs.")
    parser.add_argument("--out", default="report", help="the folder, which is replaced")
    out = parser.parse_args(arguments).out
    try:
        params.enter_project()
        print(f"{write_site(out=out)} notebooks: open {out}/index.html")
    except (params.ParamsError, FileNotFoundError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
