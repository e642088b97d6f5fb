"""The runs that can be inspected: every trained model, and CLIP's dense features without training."""

import functools
import glob
from pathlib import Path
from typing import NamedTuple

from .. import params
from ..clip.dense import DENSE_MODES
from ..segmentation.segmenter import Segmenter
from ..training.decoder import Decoder
from .view import Texts

UNTRAINED = "untrained/"


class Opened(NamedTuple):
    segmenter: Segmenter
    texts: Texts


def find(models="models"):
    """Names of runs: folders below `models` that hold a segmenter.json, then the untrained dense modes."""
    found = glob.glob("**/segmenter.json", root_dir=models, recursive=True)  # through links too
    return [*sorted(Path(path).parent.as_posix() for path in found), *(f"{UNTRAINED}{mode}" for mode in DENSE_MODES)]


@functools.lru_cache(maxsize=4)  # models kept in memory
def open_run(name, models="models"):
    """Open a run: its segmenter (seed 0) and texts. name: from `find`. Untrained runs use `clip` and `segment` of params.yaml."""
    if name.startswith(UNTRAINED):
        from ..clip.frozen import FrozenCLIP  # takes seconds to import

        p = params.load()
        clip = FrozenCLIP.open(p.clip.model_copy(update={"dense": name.removeprefix(UNTRAINED)}), params.device(p.device))
        segmenter = Segmenter(clip, Decoder(clip.width).to(clip.device), p.segment)
    else:
        segmenter = Segmenter.load(Path(models) / name)
    return Opened(segmenter, Texts(segmenter.clip, segmenter.settings.templates))
