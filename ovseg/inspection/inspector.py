"""The inspector, a widget for JupyterLab and Voila: controls, and the panels of one or two runs beside each other.

A panel is (title, PNG, note in HTML), drawn with Pillow, ten times as fast as with Matplotlib. Maps of pixel embeddings are drawn as
blocks, one per embedding. The argument c holds the values of the controls; names and others, as in Segmenter.segment; and click, the
place (down, across) of the ring in shares of a picture's height and width. Its threshold is None without a background.
"""

import functools
import io
import re
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import ipywidgets as widgets
import numpy as np
from ipyevents import Event
from matplotlib import font_manager
from matplotlib.colors import to_hex
from PIL import Image, ImageDraw, ImageFont
from tabulate import tabulate
from traitlets import dlink

from ..benchmarks.datasets import open_benchmark
from ..data.images import read_image
from ..methods.mgca import top_count
from ..schema import Segment
from ..segmentation.names import check_names
from ..segmentation.windows import BACKGROUND
from ..study import figures
from .view import NOT_JUDGED, WRONG, Picture, Texts, View, benchmark_picture, errors, open_run, training_pair

PAIRS, OWN, NONE = "training pairs", "own picture", "(none)"
PANELS = 10  # of a run
UNIT_COLOURS = figures.palette([f"unit {number}" for number in range(61)])  # they repeat
JUDGED = np.array([(210, 210, 210), (213, 94, 0), (40, 40, 40)], np.uint8)  # RIGHT, WRONG, NOT_JUDGED: distinct in any colour vision
TEXT, CROSS = (ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size) for size in (13, 32))


class Inspector(widgets.HBox):
    """The page. p: Params. models: folder of runs. prepared: folder of `prepare`. clips: further runs, as in open_run."""

    def __init__(self, p, models="models", prepared="data/prepared", clips=()):
        self.p, self.prepared, self.opened, self.click, self.updating = p, prepared, (None, None), (0.5, 0.5), False
        self.benchmark = functools.cache(lambda name: open_benchmark(name, p.benchmarks[name]))
        self.run = functools.lru_cache(4)(lambda name: Texts(open_run(name, p, models, clips)))
        self.view = functools.lru_cache(4)(lambda run, picture: View(self.run(run), picture))
        self.controls, self.status = make_controls(p, models, clips), widgets.HTML()
        dlink((self.controls.alpha, "value"), (self.controls.k, "max"))  # the positive pixel lies within the object
        controls = vars(self.controls).values()
        for control in controls:
            control.observe(self.update, "value")
        columns = {"grid_template_columns": "repeat(2, minmax(0, 330px))"}
        self.runs = [widgets.GridBox([self.panel() for _ in range(PANELS)], layout=columns) for _ in range(2)]
        left = widgets.VBox([*controls, self.status], layout={"min_width": "320px"})
        super().__init__([left, widgets.HBox(self.runs, layout={"height": "90vh", "overflow": "auto", "align_items": "flex-start"})])
        self.update()

    def panel(self):
        """A clickable picture and its caption."""
        image = widgets.Image()
        Event(source=image, watched_events=["click"]).on_dom_event(self.move_ring)
        return widgets.VBox([image, widgets.HTML()])

    def move_ring(self, event):
        """Move the ring to the place of a click. event: of ipyevents."""
        place = event["relativeY"] / event["boundingRectHeight"], event["relativeX"] / event["boundingRectWidth"]
        self.click = tuple(min(max(share, 0), 0.999) for share in place)
        self.update()

    def update(self, change=None):
        """Compute and show what has changed. Bad input leaves the panels as they are; a line says what is wrong."""
        if self.updating:
            return
        self.updating = True  # controls that are set below do not call this again
        try:
            self.open_picture()
            c = SimpleNamespace(**{name: control.value for name, control in vars(self.controls).items()}, click=self.click)
            c.names, c.others = map(tuple, check_names(re.split(r"\s*[,\n]\s*", c.classes.strip(" ,\n")), c.background))
            c.threshold = c.threshold if c.background else None
            for run, grid in zip((c.run1, c.run2), self.runs, strict=True):
                grid.layout.display = "none" if run == NONE else None
                shown = draw(run, self.view(run, self.picture), c) if run != NONE else []
                for panel, (title, png, note) in zip(grid.children, shown, strict=False):
                    image, caption = panel.children
                    image.value, caption.value = png, f'<div style="line-height: 1.3"><b>{escape(title)}</b><br>{note}</div>'
            self.status.value = ""
        except (ValueError, OSError) as error:
            self.status.value = f'<b style="color: firebrick">{escape(" ".join(str(error).split()))}</b>'
        finally:
            self.updating = False

    def open_picture(self):
        """Open the chosen picture if it is not open, and choose classes, threshold and texts that fit it."""
        c, source = self.controls, self.controls.source.value
        c.number.layout.display, c.upload.layout.display = ("none", None) if source == OWN else (None, "none")
        wanted = source, c.upload.value if source == OWN else c.number.value
        if wanted == self.opened:
            return
        if source == OWN and not c.upload.value:
            raise ValueError("upload a picture")
        if source == OWN:
            picture = Picture(read_image(io.BytesIO(c.upload.value[-1]["content"])), c.upload.value[-1]["name"])
        elif source == PAIRS:
            picture = training_pair(self.p, c.number.value, self.prepared)
        else:
            picture = benchmark_picture(self.benchmark(source), c.number.value)
        if source != self.opened[0] and picture.classes:
            c.classes.value = ", ".join(name for name in picture.classes if name != BACKGROUND)
            c.background.value = BACKGROUND in picture.classes
            c.threshold.value = self.p.evaluate.thresholds.get(source, self.p.segment.threshold)
        self.picture, self.opened = picture, wanted
        present = [name for i, name in enumerate(picture.classes) if name != BACKGROUND and (picture.truth == i).any()]
        fitting = [picture.caption] * bool(picture.caption) + present
        c.text.options = c.other.options = list(dict.fromkeys([*fitting, *picture.classes]))
        if fitting:
            c.text.value, c.other.value = (2 * fitting)[:2]


def make_controls(p, models, clips):
    """The controls by name, with the values of p (Params). models: folder of runs. clips: see Inspector."""
    points = sorted({*(side**2 for side in range(1, 17)), p.segment.meta_points})
    slider = functools.partial(widgets.FloatSlider, min=0, max=1, step=0.01, readout_format=".3f")
    runs = [*sorted(path.parent.name for path in Path(models).glob("*/segmenter.json")), *p.ablations.untrained, *clips]
    return SimpleNamespace(
        source=widgets.Dropdown(options=[*p.benchmarks, PAIRS, OWN], value=[*p.benchmarks][-1], description="picture"),
        number=widgets.BoundedIntText(0, max=10**9, description="number"),
        upload=widgets.FileUpload(accept="image/*"),
        run1=widgets.Dropdown(options=runs, value=p.clip.dense, description="run 1"),
        run2=widgets.Dropdown(options=[NONE, *runs], value="default" if "default" in runs else NONE, description="run 2"),
        classes=widgets.Textarea("cat, dog", rows=6, continuous_update=False, description="classes"),
        text=widgets.Combobox(value="cat", continuous_update=False, description="text t"),
        other=widgets.Combobox(value="dog", continuous_update=False, description="other text"),
        alpha=slider(p.mgca.alpha, min=0.01, description="alpha"),
        k=slider(p.mgca.k, max=p.mgca.alpha, description="k"),
        beta=slider(p.mgca.beta, min=0.005, max=0.5, step=0.005, description="beta"),
        unit=widgets.Dropdown(options=get_args(Segment.model_fields["unit"].annotation), value=p.segment.unit, description="unit"),
        meta_points=widgets.SelectionSlider(options=points, value=p.segment.meta_points, description="meta-points"),
        background=widgets.Checkbox(description=BACKGROUND),
        threshold=slider(p.segment.threshold, description="threshold"),
    )


def draw(run, view, c):
    """The panels of a run, PANELS of them. run: its name. view: its View. A run without learned groups shows meta-points instead."""
    picture, small, where, (height, width, _) = view.picture, view.picture.small, view.where, view.pixels.shape
    size = f"{where.width} x {where.height} px, {len(where.positions)} windows of {view.segmenter.settings.window} px"
    caption = f"“{escape(picture.caption)}”<br>" * bool(picture.caption) + f"{size}, L = {height} x {width} pixel embeddings"
    classes = c.names if c.threshold is None else (BACKGROUND, *c.names)
    known = list(dict.fromkeys([BACKGROUND, *picture.classes, *c.names]))  # equal names have equal colours
    of_truth, of_labels = (figures.palette(known)[[known.index(name) for name in some]] for some in (picture.classes, classes))

    selected = view.select(c.text, c.other, c.names, c.alpha, c.beta, c.k)
    values, place, masks = selected["similarity"], selected["positive"], (selected["object"], selected["region"])
    of_object, of_region = ((png(figures.highlight(small, mask), c), f"{mask.sum()} of {mask.size} pixels") for mask in masks)
    positive = png(small, c, cross=(np.array(place) + 0.5) / values.shape)

    unit = "meta-point" if c.unit == "learned-group" and view.segmenter.grouping is None else c.unit
    formed, scores, labels = view.label(unit, c.meta_points, c.names, c.others, c.threshold)
    units = figures.overlay(small, figures.in_blocks(formed.ids % len(UNIT_COLOURS), small), UNIT_COLOURS)
    units = png(figures.unit_borders(units, formed.ids), c, dots=(formed.points + 0.5) / formed.ids.shape)
    window, own, size, texts = view.explain(formed, scores, c.names + c.others, c.click)
    rows = [(name, f"{score:.3f}", f"{share:.1%}", f"{cosine:.3f}") for name, score, share, cosine in texts]
    table = tabulate(rows, ["at the ring", "score", "softmax", "its unit"], tablefmt="html", disable_numparse=True)
    cosines, ends = heat(small, c, view.unit_scores(formed, c.text, c.names), figures.SCORE)
    judged = errors(labels, classes, picture.truth, picture.classes)
    return [
        (f"{run}: {picture.title}", png(small, c), caption),
        ("Ground truth", png(small, c, picture.truth, of_truth, picture.classes), ""),
        (f"Similarity S of each pixel to “{c.text}”", *heat(small, c, values, figures.SIMILARITY)),
        (f"Object: the top {c.alpha:.0%} for “{c.text}”", *of_object),
        (f"Semi-hard positive: rank {top_count(c.k, values.size)} of {values.size}", positive,
         f"S = {values[place]:.2f}; the first pixel has {values.max():.2f}"),
        (f"Hard negative: the top {c.beta:.1%} for “{c.other}”", *of_region),
        (f"{len(np.unique(formed.ids))} units: {unit}", units,
         f"at the ring: unit {own} of window {window}, {size} of its {formed.of_windows[0].numel()} pixels"),
        (f"Score of each unit: cosine with “{c.text}”", cosines, ends + table),
        ("Label map", png(small, c, labels, of_labels, classes), legend(classes, of_labels, labels)),
        ("Error", png(small, c, judged, JUDGED),
         f"{(judged == WRONG).sum()} of {(judged != NOT_JUDGED).sum()} judged pixels are wrong (orange)"),
    ]  # fmt: skip


def heat(small, c, values, name):
    """A map (h, w) in a matplotlib colour map: PNG, and what its colours stand for."""
    low, high = values.min(), values.max()
    return png(figures.in_blocks(figures.heat(values, low, high, name), small), c), f"{low:.2f} (dark) to {high:.2f} (bright)"


def legend(names, of_names, labels):
    """The classes of a label map with their colours and shares, largest first, then the names of the others. HTML."""
    shares = np.bincount(labels.flat, minlength=len(names)) / labels.size
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    present = [f'<span style="color: {to_hex(of_names[i] / 255)}">■</span> {escape(names[i])} {shares[i]:.1%}' for i in order]
    absent = ", ".join(escape(name) for i, name in enumerate(names) if not shares[i])
    return " ".join(present) + f"<br>in no pixel: {absent}" * bool(absent)


def png(array, c, labels=None, palette=(), classes=(), dots=(), cross=None):
    """An array (H, W, 3) uint8 as PNG, with the ring. dots, cross: marks at places like the ring's, several and one. labels (h, w): painted
    over the array in the colours of a palette, with names of classes in large regions."""
    image = Image.fromarray(array if labels is None else figures.overlay(array, figures.in_blocks(labels, array), palette))
    drawn, (width, height) = ImageDraw.Draw(image), image.size
    outlined = {"fill": "white", "anchor": "mm", "stroke_width": 2, "stroke_fill": "black"}
    for index, x, y in figures.large_regions(labels, classes) if classes else ():
        drawn.text(((x + 0.5) * width / labels.shape[1], (y + 0.5) * height / labels.shape[0]), classes[index], font=TEXT, **outlined)
    for down, across in dots:
        drawn.circle((across * width, down * height), 2.5, "white", "black")
    if cross is not None:
        drawn.text((cross[1] * width, cross[0] * height), "+", font=CROSS, **outlined)
    for radius, colour, stroke in ((8, "black", 4), (7, "white", 2)):
        drawn.circle((c.click[1] * width, c.click[0] * height), radius, outline=colour, width=stroke)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
