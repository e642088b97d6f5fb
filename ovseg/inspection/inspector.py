"""The inspector: controls, panels, clicks. `Inspector(params.load()).page` is a widget for JupyterLab and Voila.

Every control calls `update`. A panel is redrawn only if its key, which identifies its content, has changed.
"""

import contextlib
import functools
from dataclasses import dataclass

import numpy as np
from ipyevents import Event
from ipywidgets import HTML, Box, Image, Layout, VBox

from ..benchmarks.layouts import IGNORED
from ..segmentation.windows import BACKGROUND
from ..study import figures
from . import markup, panels, pictures, view
from .controls import FILE, PAIRS, Controls
from .runs import find, open_run

TRAINING, LABELLING = "What training selects", "How each pixel gets its label"


class Panel(VBox):
    """A title, a clickable picture, and a line below it: a colour bar, a legend or a note."""

    def __init__(self, clicked):
        self.title, self.image, self.foot, self.key = HTML(), Image(format="png", layout=Layout(width="100%", height="auto")), HTML(), None
        super().__init__([self.title, self.image, self.foot], layout=Layout(min_width="0"))
        self.add_class("ovseg-panel")
        self.events = Event(source=self.image, watched_events=["click"])
        self.events.on_dom_event(
            lambda event: clicked(event["relativeY"] / event["boundingRectHeight"], event["relativeX"] / event["boundingRectWidth"])
        )

    def draw(self, key, title, make, foot=""):
        """Show the PNG returned by make(), unless key equals the current one."""
        if key != self.key:
            self.title.value, self.image.value, self.foot.value, self.key = markup.title(title), make(), foot, key


@dataclass
class Slot:
    """One of the runs shown side by side: its widgets, and its view of the picture."""

    training: list
    labelling: list
    names: tuple  # HTML above each row
    why: HTML
    view: object = None
    seen: tuple = ()  # the run and the picture of `view`


class Inspector:
    """The page and its state. p: Params. models: folder of models. count: number of runs side by side."""

    def __init__(self, p, models="models", count=2):
        self.p, self.models, self.clicked, self._still = p, models, (0.5, 0.5), False
        self.controls = Controls(p, find(models), count)
        self.order = list(dict.fromkeys(name for known in self.controls.known.values() for name in known if name != BACKGROUND))
        self.picture, self.read = None, None
        self.status, self.shown, self.truth = HTML(), Panel(self.click), Panel(self.click)
        self.slots = [self._slot() for _ in range(count)]
        self.page = self._page()
        self.controls.observe(self.update)
        self.update()

    def _slot(self):
        rows = [[Panel(self.click) for _ in range(4)] for _ in range(2)]
        return Slot(*rows, (HTML(), HTML()), HTML())

    def _page(self):
        def grid(children):
            return Box(children, layout=Layout(display="grid", grid_template_columns="repeat(4, minmax(0, 1fr))", grid_gap="4px 10px"))

        training = [part for slot in self.slots for part in (slot.names[0], grid(slot.training))]
        labelling = [part for slot in self.slots for part in (slot.names[1], grid(slot.labelling))]
        side = [*self.controls.top, self.shown, self.truth, HTML(markup.head("Why this pixel (click one)")), *(s.why for s in self.slots)]
        main = [
            self.status,
            HTML(markup.head(TRAINING)),
            self.controls.training,
            *training,
            HTML(markup.head(LABELLING)),
            self.controls.labelling,
            *labelling,
        ]
        columns = [VBox(side, layout=Layout(min_width="0")), VBox(main, layout=Layout(min_width="0"))]
        body = Box(columns, layout=Layout(display="grid", grid_template_columns="290px minmax(0, 1fr)", grid_gap="18px"))
        page = VBox([HTML(markup.STYLE), body])
        page.add_class("ovseg-page")
        return page

    def click(self, down, across):
        """Handle a click on a panel. down, across: position as shares of its height and width."""
        self.clicked = tuple(min(max(share, 0), 1) for share in (down, across))
        self.update()

    def update(self, change=None):
        """Compute and draw what has changed. Invalid input leaves the page unchanged and shows one line that says what is allowed."""
        if self._still:
            return
        try:
            with self._quiet():
                self._read()
            names = self.controls.names()
            self.order += [name for name in names if name not in self.order and name != BACKGROUND]
            for slot, run in zip(self.slots, self.controls.runs(), strict=True):
                self._update(slot, run, names)
            self._surroundings()
            self.status.value = markup.status(self._how_seen())
        except (ValueError, OSError) as error:
            self.status.value = markup.status(" ".join(str(error).split()), bad=True)

    @contextlib.contextmanager
    def _quiet(self):
        """Within this context, setting controls does not call `update`."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    def _read(self):
        """Open the selected picture if it has changed, and set texts that fit it."""
        wanted = self.controls.picture()
        if wanted == self.read:
            return
        source, which = wanted
        if source == FILE:
            picture = pictures.of_file(which)
        else:
            picture = pictures.of_pair(self.p, which) if source == PAIRS else pictures.of_benchmark(self.p.benchmarks, source, which)
        changed = self.read is None or self.read[0] != source
        self.picture, self.read = picture, wanted
        present = [name for name in self._largest() if name != BACKGROUND]
        self.controls.fit(picture, present, changed)

    def _largest(self):
        """Names of the classes in the picture's truth, largest first."""
        if self.picture.truth is None:
            return []
        known = self.picture.truth[self.picture.truth != IGNORED]
        sizes = np.bincount(known.ravel(), minlength=len(self.picture.classes))
        return [self.picture.classes[index] for index in np.argsort(-sizes, kind="stable") if sizes[index]]

    def _how_seen(self):
        first = self.slots[0].view
        height, width = first.cells.row.shape
        how = "as in training" if self.picture.side else "as in evaluation"
        where = first.where
        count = len(where.positions)
        windows = f"{count} window{'s' * (count > 1)} of {first.segmenter.settings.window} px"
        return f"{self.picture.title}: seen {how}, {where.width} x {where.height} px, {windows}, L = {height} x {width} pixel embeddings"

    def colours(self, names):
        """The colours of names, (C, 3) uint8: classes of the study have the same colours as in its figures; others follow."""
        palette = figures.palette([BACKGROUND, *self.order])
        return palette[[0 if name == BACKGROUND else self.order.index(name) + 1 for name in names]]

    def _surroundings(self):
        """Draw the picture, and its truth if there is one."""
        picture, ring = self._background(self.read), self.clicked
        note = f"“{self.picture.caption}”" if self.picture.caption else ""
        self.shown.draw((self.read, ring), "Picture", lambda: panels.png(picture, ring=ring), markup.note(note))
        self.truth.layout.display = "none" if self.picture.truth is None else None
        if self.picture.truth is not None:
            truth, classes = self.picture.truth, self.picture.classes
            painted = panels.label_map(picture, truth, self.colours(classes))
            self.truth.draw((self.read, ring), "Truth", lambda: panels.png(painted, ring=ring, labels=truth, classes=classes))

    @functools.lru_cache(maxsize=2)  # noqa: B019 (one inspector a page)
    def _background(self, read):
        return panels.background(self.picture.image)

    def _update(self, slot, run, names):
        shown = run is not None
        for widget in (*slot.names, slot.why, *slot.training, *slot.labelling):
            widget.layout.display = None if shown else "none"
        if not shown:
            slot.seen = ()
            return
        opened = open_run(run, self.models)
        if slot.seen != (run, self.read):
            slot.view, slot.seen = view.View(opened.segmenter, self.picture.image, self.picture.side), (run, self.read)
        for heading in slot.names:
            heading.value = markup.run(run)
        self._training(slot, opened, names)
        self._labelling(slot, opened, names, run)

    def _training(self, slot, opened, names):
        c, picture, ring = self.controls, self._background(self.read), self.clicked
        text, other = c.texts()
        alpha, beta, k = c.alpha.value, c.beta.value, c.k.value
        embedded = [opened.texts.raw(word, names) for word in (text, other)]
        found = slot.view.select(*embedded, alpha, beta, k)
        shape, count = picture.shape[:2], found.object.numel()
        key, (similarity, mask, pixel, region) = (slot.seen, ring, text, text in names), slot.training
        low, high = found.similarity.min(), found.similarity.max()
        values = found.similarity.numpy()
        similarity.draw(
            key,
            f"Similarity S of each pixel to “{text}”",
            lambda: panels.png(panels.heat(values, shape), ring=ring),
            markup.bar(low, high, "magma"),
        )
        size, rank = int(found.object.sum()), view.count(k, count)
        dimmed = [figures.highlight(picture, chosen.numpy()) for chosen in (found.object, found.region)]
        mask.draw(
            (key, size),
            f"Object: the top {alpha:.0%} for “{text}”",
            lambda: panels.png(dimmed[0], ring=ring),
            markup.note(f"{size} of {count} pixels"),
        )
        star = tuple((place + 0.5) / length for place, length in zip(found.positive, found.object.shape, strict=True))
        pixel.draw(
            (key, rank),
            f"Semi-hard positive: rank {rank} of {count}",
            lambda: panels.png(panels.background(self.picture.image), star=star, ring=ring),
            markup.note(f"k = {k:g}: S = {found.similarity[found.positive]:.2f}; rank 1 has {high:.2f}"),
        )
        size = int(found.region.sum())
        region.draw(
            (slot.seen, ring, other, other in names, size),
            f"Hard negative: the top {beta:.1%} for “{other}”",
            lambda: panels.png(dimmed[1], ring=ring),
            markup.note(f"{size} of {count} pixels"),
        )

    def _labelling(self, slot, opened, names, run):
        c, picture, ring = self.controls, self._background(self.read), self.clicked
        scored = [name for name in names if name != BACKGROUND]
        classes = opened.texts.classes(scored)
        lacking = c.unit.value == "learned-group" and opened.segmenter.grouping is None
        unit = "meta-point" if lacking else c.unit.value
        formed = slot.view.form(unit, c.meta_points.value)
        truth = self.picture.truth
        scores = slot.view.score(formed, classes, None if truth is None else truth.shape)
        threshold = c.threshold.value if c.background.value else None
        labels = scores.labels(opened.segmenter.scale, threshold).numpy()
        units, cosines, label_map, error = slot.labelling
        key, text = (slot.seen, ring, unit, c.meta_points.value, lacking), c.texts()[0]
        count = len(formed.ids.unique())
        dots = () if formed.points is None else (formed.points + 0.5) / formed.ids.shape
        windows = len(formed.of_windows)
        kinds = {"pixel": "a pixel each", "group": "by k-means", "learned-group": "as learned in training"}
        kind = kinds.get(unit, f"around {c.meta_points.value} meta-points")
        notes = ["this run has learned no groups"] * lacking
        notes += ["each window has units of its own; shown are those of the nearer one"] * (windows > 1)
        note = markup.note("; ".join(notes))
        title = f"{count} units {kind}{' a window' * (windows > 1 and formed.points is not None)}"
        units.draw(key, title, lambda: panels.png(panels.units(picture, formed.ids), dots, ring=ring), note)
        values = slot.view.unit_scores(formed, opened.texts.unit(text, names)).numpy()
        cosines.draw(
            (key, text, text in names),
            f"Score of each unit: cosine with “{text}”",
            lambda: panels.png(panels.heat(values, picture.shape[:2], "viridis"), ring=ring),
            markup.bar(values.min(), values.max(), "viridis"),
        )
        colours, key = self.colours(names), (key, tuple(names), threshold)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        painted = panels.label_map(picture, labels, colours)
        label_map.draw(
            key,
            "Label map",
            lambda: panels.png(painted, ring=ring, labels=labels, classes=names),
            markup.legend(names, colours, shares),
        )
        if truth is None:
            error.draw(key, "Error: this picture has no truth", lambda: panels.png(picture, ring=ring))
        else:
            found = view.errors(labels, names, truth, self.picture.classes)
            judged = max(1, int((found != view.NOT_JUDGED).sum()))
            wrong = f"{(found == view.WRONG).sum() / judged:.1%} of the pixels that are judged are wrong (orange)"
            error.draw(key, "Error", lambda: panels.png(panels.errors(picture, found), ring=ring), markup.note(wrong))
        why = slot.view.explain(formed, scores, scored, classes, *ring)
        row, column = (min(int(share * side), side - 1) for share, side in zip(ring, labels.shape, strict=True))
        slot.why.value = markup.explanation(run, why, formed.of_windows[0].numel(), names[labels[row, column]])
