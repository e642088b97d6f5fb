"""The inspector's controls for the picture, runs, texts and the method's parameters. User input is validated here."""

from ipywidgets import (
    HTML,
    BoundedIntText,
    Box,
    Checkbox,
    Combobox,
    Dropdown,
    FileUpload,
    FloatSlider,
    Layout,
    SelectionSlider,
    Text,
    Textarea,
)

from ..benchmarks import datasets
from ..segmentation.windows import BACKGROUND
from . import markup

PAIRS, FILE, NONE = "training pairs", "a file", "(none)"
SQUARES = [side * side for side in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16)]  # meta-points; at most 16 x 16 fit a training picture here
UNITS = ["meta-point", "pixel", "group", "learned-group"]


def _wide(width="100%"):
    return Layout(width=width)  # per control, because each is hidden separately


def _slider(name, value, low, high, step, **more):
    style = {"description_width": "initial"}
    return FloatSlider(value, min=low, max=high, step=step, description=name, style=style, layout=_wide("215px"), **more)


class Controls:
    """p: Params. runs: names of runs. count: number of runs shown side by side."""

    def __init__(self, p, runs, count):
        self.p, self.known, backgrounds = p, {}, {}
        for name, settings in p.benchmarks.items():
            try:
                benchmark = datasets.open_benchmark(name, settings)
            except FileNotFoundError:
                continue  # not offered
            self.known[name], backgrounds[name] = benchmark.classes, benchmark.background
        self.backgrounds = backgrounds
        sources = [*self.known, PAIRS, FILE]
        self.source = Dropdown(options=sources, value=next(iter(reversed(self.known)), FILE), description="picture", layout=_wide())
        self.index = BoundedIntText(value=0, min=0, max=10**9, description="number", layout=_wide())
        self.path = Text(placeholder="path of a picture, then Enter", description="file", continuous_update=False, layout=_wide())
        self.upload = FileUpload(accept="image/*", description="or upload", layout=_wide())
        first = ["untrained/maskclip" if count > 1 and "untrained/maskclip" in runs else runs[0], "mgca" if "mgca" in runs else runs[-1]]
        self.chosen = [
            Dropdown(options=[NONE, *runs] if number else runs, value=first[number % 2], description=f"run {number + 1}", layout=_wide())
            for number in range(count)
        ]
        self.classes = Textarea(description="classes", rows=4, continuous_update=False, placeholder="car, tall tree, sky", layout=_wide())
        close = {"style": {"description_width": "initial"}}
        words = {"continuous_update": False, "ensure_option": False, **close}
        self.text = Combobox(description="text t", layout=_wide("240px"), **words)
        self.other = Combobox(description="other text", layout=_wide("240px"), **words)
        m, s = p.mgca, p.segment
        self.alpha = _slider("alpha", m.alpha, 0.01, 1, 0.01)
        self.beta = _slider("beta", m.beta, 0.005, 0.5, 0.005, readout_format=".3f")
        self.k = _slider("k", m.k, 0, m.alpha, 0.01)
        self.unit = Dropdown(
            description="unit", options=UNITS, value=s.unit, layout=_wide("180px"), **close
        )
        points = sorted({*SQUARES, s.meta_points})
        self.meta_points = SelectionSlider(description="meta-points", options=points, value=s.meta_points, layout=_wide("230px"), **close)
        self.background = Checkbox(False, description=BACKGROUND, indent=False, layout=_wide("110px"))
        self.threshold = _slider("threshold", s.threshold, 0, 1, 0.01)
        row = {"display": "flex", "flex_flow": "row wrap", "grid_gap": "0 14px"}
        self.top = [
            HTML(markup.head("Picture, runs, texts")),
            self.source,
            self.index,
            self.path,
            self.upload,
            *self.chosen,
            self.classes,
        ]
        self.training = Box([self.text, self.other, self.alpha, self.k, self.beta], layout=Layout(**row))
        self.labelling = Box([self.unit, self.meta_points, self.background, self.threshold], layout=Layout(**row))
        self.alpha.observe(self._bound, "value")
        self._show_source()

    def observe(self, update):
        """Call update(change) whenever a control changes."""
        parts = (self.source, self.index, self.path, self.upload, *self.chosen, self.classes, self.text, self.other)
        for control in (*parts, self.alpha, self.beta, self.k, self.unit, self.meta_points, self.background, self.threshold):
            control.observe(update, "value")

    def _bound(self, change):
        self.k.max = self.alpha.value  # the positive pixel lies within the object

    def _show_source(self):
        file = self.source.value == FILE
        for control in (self.path, self.upload):
            control.layout.display = None if file else "none"
        self.index.layout.display = "none" if file else None

    def picture(self):
        """The selected picture: (source, number), or (FILE, path or (name, bytes)). Raises ValueError if no file is given yet."""
        self._show_source()
        if self.source.value != FILE:
            return self.source.value, self.index.value
        if self.path.value.strip():
            return FILE, self.path.value.strip()
        if self.upload.value:
            return FILE, (self.upload.value[-1]["name"], bytes(self.upload.value[-1]["content"]))
        raise ValueError("type the path of a picture, or upload one")

    def runs(self):
        """Names of the selected runs; None if no run is selected."""
        return [None if chosen.value == NONE else chosen.value for chosen in self.chosen]

    def names(self):
        """The classes, with the background first if it is ticked. Raises ValueError unless there are at least two distinct classes."""
        names = [" ".join(name.split()) for name in self.classes.value.replace("\n", ",").split(",") if name.strip()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"classes: {twice[0]} comes twice; each class once, separated by commas")
        if BACKGROUND in map(str.lower, names):
            raise ValueError("classes: the background is no class of its own; tick it below")
        if len(names) < 2:
            raise ValueError("classes: at least two, separated by commas")
        return [BACKGROUND, *names] if self.background.value else names

    def texts(self):
        """The text t and the other text. Raises ValueError if one is empty."""
        for control in (self.text, self.other):
            if not control.value.strip():
                raise ValueError(f"{control.description}: any words")
        return self.text.value.strip(), self.other.value.strip()

    def fit(self, picture, present, changed):
        """Set the texts to fit a picture. present: classes in its truth, largest first. changed: whether the source has changed."""
        if changed:
            names = [name for name in picture.classes if name != BACKGROUND] or self._names_or_known()
            self.classes.value = ", ".join(names)
            self.background.value = self.backgrounds.get(self.source.value, False)
            self.threshold.value = self.p.evaluate.thresholds.get(self.source.value, self.p.segment.threshold)
        names = [name.strip() for name in self.classes.value.split(",")]
        options = [name for name in dict.fromkeys([picture.caption, *present, *names]) if name]
        self.text.options = self.other.options = options
        if picture.caption or present or not self.text.value.strip():
            self.text.value, self.other.value = options[0], options[1] if len(options) > 1 else options[0]

    def _names_or_known(self):
        return [name.strip() for name in self.classes.value.split(",") if name.strip()] or next(iter(self.known.values()), ["cat", "dog"])
