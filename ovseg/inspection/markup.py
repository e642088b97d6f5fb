"""The page's HTML: titles, colour bars, legends, the explanation of a pixel. Strings in, strings out; user input is escaped."""

from html import escape

import matplotlib
from matplotlib.colors import to_hex

STYLE = """<style>
.ovseg-page { color: #222; background: #fff; padding: 8px 12px; }
.ovseg-page .widget-html-content, .ovseg-page .jupyter-widgets.widget-html-content { line-height: 1.35; }
.ovseg-panel { overflow: hidden; }
.ovseg-panel img { display: block; width: 100%; height: auto; cursor: crosshair; margin: 0; }
.ovseg-title { font-size: 13px; min-height: 2.7em; display: flex; align-items: flex-end; }
.ovseg-head { font-size: 15px; font-weight: 600; border-bottom: 1px solid #bbb; margin-top: 6px; }
.ovseg-run { font-size: 13px; font-weight: 600; color: #0b4f8a; margin-top: 4px; }
.ovseg-bar { font-size: 11px; display: flex; gap: 6px; align-items: center; min-height: 17px; }
.ovseg-bar i { flex: 1; height: 9px; border: 1px solid #888; }
.ovseg-legend { font-size: 12px; display: flex; flex-wrap: wrap; gap: 1px 10px; }
.ovseg-legend b { display: inline-block; width: 11px; height: 11px; margin-right: 4px; border: 1px solid #666; }
.ovseg-legend .none { color: #767676; }
.ovseg-why { font-size: 12px; border-collapse: collapse; width: 100%; }
.ovseg-why td, .ovseg-why th { padding: 0 6px 0 0; text-align: right; font-weight: normal; }
.ovseg-why th { color: #555; border-bottom: 1px solid #ccc; }
.ovseg-why td:first-child, .ovseg-why th:first-child { text-align: left; }
.ovseg-status { font-size: 13px; min-height: 1.4em; color: #555; }
.ovseg-status.bad { color: #a30000; font-weight: 600; }
</style>"""


def title(text):
    return f'<div class="ovseg-title"><span>{escape(text)}</span></div>'


def head(text):
    return f'<div class="ovseg-head">{escape(text)}</div>'


def run(text):
    return f'<div class="ovseg-run">{escape(text)}</div>'


def status(text, bad=False):
    return f'<div class="ovseg-status{" bad" if bad else ""}" role="status">{escape(text)}</div>'


def bar(low, high, name):
    """A colour bar with its lowest and highest value. name: a matplotlib colour map."""
    colours = ",".join(to_hex(matplotlib.colormaps[name](step / 8)) for step in range(9))
    gradient = f"background:linear-gradient(to right,{colours})"
    return f'<div class="ovseg-bar">{low:.2f}<i style="{gradient}"></i>{high:.2f}</div>'


def note(text):
    return f'<div class="ovseg-bar">{escape(text)}</div>'


def legend(names, colours, shares):
    """Classes with their colours and shares of the picture, largest first, followed by the absent ones.

    colours (C, 3) uint8. shares: C numbers, 0..1.
    """
    order = sorted(range(len(names)), key=lambda index: -shares[index])
    chips = [
        f'<span><b style="background:{to_hex(colours[index] / 255)}"></b>{escape(names[index])} {shares[index]:.1%}</span>'
        for index in order
        if shares[index]
    ]
    absent = ", ".join(escape(names[index]) for index in order if not shares[index])
    rest = f'<span class="none">in no pixel: {absent}</span>' if absent else ""
    return f'<div class="ovseg-legend">{"".join(chips)}{rest}</div>'


def explanation(name, found, size, label):
    """Why a pixel has its label. name: of the run. found: view.Explanation. size: pixels per window. label: the pixel's label."""
    where = f"unit {found.unit} of window {found.window}: {found.size} of its {size} pixels"
    rows = "".join(
        f"<tr><td>{escape(text)}</td><td>{score:.3f}</td><td>{share:.1%}</td><td>{cosine:.3f}</td></tr>"
        for text, score, share, cosine in found.texts
    )
    columns = "<tr><th>text</th><th>score</th><th>softmax</th><th>its unit</th></tr>"
    return f'{run(name)}<div class="ovseg-bar">{escape(where)} → {escape(label)}</div><table class="ovseg-why">{columns}{rows}</table>'
