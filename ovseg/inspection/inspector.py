"""The inspector, a widget for JupyterLab and Voila: controls, and the panels of one or two runs beside each other."""

import functools
import io
import re
from html import escape
from types import SimpleNamespace
from typing import get_args

import ipywidgets as widgets
import numpy as np
from ipyevents import Event
from traitlets import dlink

from ..benchmarks.datasets import open_benchmark
from ..benchmarks.layouts import IGNORED
from ..data.images import read_image
from ..schema import Segment
from ..segmentation.names import check_names
from ..segmentation.windows import BACKGROUND
from . import panels, sources
from .view import Texts, View

PAIRS, OWN, NONE = "training pairs", "own picture", "(none)"


class Inspector(widgets.HBox):
    """The page. p: Params. models: folder of runs. prepared: folder of `prepare`."""

    def __init__(self, p, models="models", prepared="data/prepared"):
        self.p, self.prepared, self.opened, self.place, self.updating = p, prepared, (None, None), (0.5, 0.5), False
        self.benchmark = functools.cache(lambda name: open_benchmark(name, p.benchmarks[name]))
        self.run = functools.lru_cache(4)(lambda name: (segmenter := sources.open_run(name, p, models), Texts(segmenter)))
        self.view = functools.lru_cache(4)(lambda run, picture: View(*self.run(run), picture.image, picture.side))
        self.controls, self.status = controls(p, sources.run_names(p, models)), widgets.HTML()
        dlink((self.controls.alpha, "value"), (self.controls.k, "max"))  # the positive pixel lies within the object
        for control in vars(self.controls).values():
            control.observe(self.update, "value")
        columns = {"grid_template_columns": "repeat(2, minmax(0, 330px))"}
        self.runs = [widgets.GridBox([self.panel() for _ in range(panels.COUNT)], layout=columns) for _ in range(2)]
        left = widgets.VBox([*vars(self.controls).values(), self.status], layout={"min_width": "320px"})
        super().__init__([left, widgets.HBox(self.runs, layout={"height": "90vh", "overflow": "auto", "align_items": "flex-start"})])
        self.update()

    def panel(self):
        """A clickable picture and its caption."""
        image = widgets.Image()
        Event(source=image, watched_events=["click"]).on_dom_event(self.click)
        return widgets.VBox([image, widgets.HTML()])

    def click(self, event):
        """Move the ring to the place of a click. event: of ipyevents."""
        place = event["relativeY"] / event["boundingRectHeight"], event["relativeX"] / event["boundingRectWidth"]
        self.place = tuple(min(max(share, 0), 0.999) for share in place)
        self.update()

    def update(self, change=None):
        """Compute and show what has changed. Bad input leaves the panels as they are; a line says what is wrong."""
        if self.updating:
            return
        self.updating = True  # controls that are set below do not call this again
        try:
            self.open_picture()
            c = SimpleNamespace(**{name: control.value for name, control in vars(self.controls).items()})
            names, others = map(tuple, check_names(re.split(r"\s*[,\n]\s*", c.classes.strip(" ,\n")), c.background))
            threshold = c.threshold if c.background else None
            for run, grid in zip((c.run1, c.run2), self.runs, strict=True):
                grid.layout.display = "none" if run == NONE else None
                if run != NONE:
                    seen = self.view(run, self.picture), self.picture, self.place
                    shown = panels.pictures(run, *seen, names) + panels.training(*seen, c.text, c.other, names, c.alpha, c.beta, c.k)
                    shown += panels.labelling(*seen, c.text, names, others, c.unit, c.meta_points, threshold)
                    for panel, (title, png, note) in zip(grid.children, shown, strict=True):
                        panel.children[0].value = png
                        panel.children[1].value = f'<div style="line-height: 1.3"><b>{escape(title)}</b><br>{note}</div>'
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
            picture = sources.Picture(read_image(io.BytesIO(c.upload.value[-1]["content"])), c.upload.value[-1]["name"])
        elif source == PAIRS:
            picture = sources.training_pair(self.p, c.number.value, self.prepared)
        else:
            picture = sources.benchmark_picture(self.benchmark(source), c.number.value)
        if source != self.opened[0] and picture.classes:
            c.classes.value = ", ".join(name for name in picture.classes if name != BACKGROUND)
            c.background.value = BACKGROUND in picture.classes
            c.threshold.value = self.p.evaluate.thresholds.get(source, self.p.segment.threshold)
        self.picture, self.opened = picture, wanted
        present = [picture.classes[i] for i in np.unique(picture.truth) if i != IGNORED and picture.classes[i] != BACKGROUND]
        fitting = [picture.caption] * bool(picture.caption) + present
        c.text.options = c.other.options = list(dict.fromkeys([*fitting, *picture.classes]))
        if fitting:
            c.text.value, c.other.value = (2 * fitting)[:2]


def controls(p, runs):
    """The controls by name, with the values of p (Params). runs: names."""
    points = sorted({*(side**2 for side in range(1, 17)), p.segment.meta_points})

    slider = functools.partial(widgets.FloatSlider, min=0, max=1, step=0.01, readout_format=".3f")
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
