"""What may be wrong with a benchmark's files, for check-data and for evaluations."""

from ..data.images import TURNED
from .layouts import IGNORED


class Notes:
    """Collected while a benchmark (datasets.BenchmarkBase) is read: call `add` for each picture, then `lines`."""

    def __init__(self, benchmark):
        self.benchmark, self.ids, self.colours, self.first = benchmark, set(), {}, {}  # first: {what: key of the first picture}

    def add(self, key, image, stored, ids):
        """Look at a picture, its label map as stored (both PIL) and the distinct ids in it. Returns what is wrong with their sizes."""
        self.ids.update(self.benchmark.decoded(ids).tolist())
        palette = stored.getpalette() or []
        colours = {index: palette[3 * index : 3 * index + 3] for index in ids.tolist() if palette}
        if any(self.colours.setdefault(index, colour) != colour for index, colour in colours.items()):
            self.first.setdefault("an id has another colour in another label map: has an optimiser renumbered their palettes?", key)
        if image.info.get(TURNED) == stored.size == image.size:  # so that the sizes do not tell
            self.first.setdefault("EXIF turns pictures upright: are their label maps upright, too?", key)
        if self.benchmark.ignored > IGNORED and IGNORED in ids and stored.mode in ("L", "P"):
            self.first.setdefault("label maps of 8 bits hold 255: with more than 255 classes it is a class, and 65535 is ignored", key)
        if image.size != stored.size:
            turned = " after EXIF has turned it (store it upright, or turn its label map, too)" * (TURNED in image.info)
            return f"{key}: image is {image.width}x{image.height}{turned}, label map {stored.width}x{stored.height}"

    def lines(self):
        """A list of texts of one line."""
        masks = f"all ids are 0 or {IGNORED}, which is ignored: if these are masks of one class, they must hold 1 instead of {IGNORED}"
        only = {self.benchmark.ignored} <= self.ids <= {0, IGNORED}
        return [*self.benchmark.notes, *(f"{what} (first: {key})" for what, key in self.first.items()), *[masks] * only]
