"""The colours of classes, curves and maps in all figures, distinguishable with normal and red-green colour-blind vision.

Many classes cannot all be far apart for everybody: with only two kinds of cones, colours vary in two dimensions instead of three. The
22 colours of the rendered world are at least 17 apart in CIELAB for normal vision, 14 for a deuteranope and 10 for a protanope (2 is just
visible side by side). This holds for plain areas. Over the texture of a picture the differences shrink, so large regions carry names.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.colors import to_rgb
from scipy.optimize import linear_sum_assignment

from ..segmentation.windows import BACKGROUND
from ..world import scenes

SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"]  # Okabe and Ito, jfly.uni-koeln.de/color
FIRST = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]  # Okabe and Ito's, for classes
SCORE, SIMILARITY = "viridis", "magma"  # maps of cosines, and of S = V·t
TAKEN = ((0, 0, 0), (128, 128, 128))  # the background and what is ignored
LIGHTNESS, CHROMA = (0.42, 0.95), (0.05, 0.16)  # allowed ranges in Oklab for classes: distinct from black, white and grey, and not glaring
STEPS = 11  # values per channel of the candidate colours
WEIGHTS = (0.6, 1, 1)  # weights of distances in the three views: distances in normal vision are the largest

# Linear RGB as a deuteranope and a protanope see it: Machado et al. 2009, severity 1.
DEUTERANOPE = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
PROTANOPE = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
# Linear RGB to Oklab (bottosson.github.io/posts/oklab), in which distances are approximately perceptual.
TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)

plt.rcParams |= {"axes.prop_cycle": cycler(color=SERIES), "image.cmap": SCORE}


def seen(colours):
    """Colours as seen with normal, deuteranope and protanope vision, in Oklab: (n, 3) 0..255 -> (3, n, 3)."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    views = [linear, *(np.clip(linear @ np.transpose(matrix), 0, 1) for matrix in (DEUTERANOPE, PROTANOPE))]
    return np.cbrt(np.stack(views) @ np.transpose(TO_CONES)) @ np.transpose(TO_OKLAB)


@functools.cache
def sequence(count):
    """`count` distinct colours, (count, 3) uint8: FIRST, then repeatedly the colour furthest from all earlier ones in its worst view.

    A longer sequence begins with a shorter one.
    """
    values = np.linspace(0, 255, STEPS)
    offered = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(-1, 3)
    views = seen(offered)
    lightness, chroma = views[0, :, 0], np.linalg.norm(views[0, :, 1:], axis=-1)
    allowed = (LIGHTNESS[0] < lightness) & (lightness < LIGHTNESS[1]) & (CHROMA[0] < chroma) & (chroma < CHROMA[1])
    offered, views = offered[allowed], views[:, allowed] * np.reshape(WEIGHTS, (3, 1, 1))
    chosen = [np.array(to_rgb(colour)) * 255 for colour in FIRST]
    before = seen([*TAKEN, *chosen]) * np.reshape(WEIGHTS, (3, 1, 1))
    nearest = np.linalg.norm(views[:, :, None] - before[:, None], axis=-1).min((0, 2))
    while len(chosen) < count:
        furthest = nearest.argmax()
        chosen.append(offered[furthest])
        nearest = np.minimum(nearest, np.linalg.norm(views - views[:, furthest, None], axis=-1).min(0))
    return np.round(chosen[:count]).astype(np.uint8)


@functools.cache
def of_world():
    """{class of the rendered world: its index in `sequence`}. Stuff classes get the colours nearest to their rendered colours."""
    views = seen(sequence(len(scenes.CLASSES)))[0]
    own = seen(list(scenes.STUFF.values()))[0]
    _, of_stuff = linear_sum_assignment(np.linalg.norm(own[:, None] - views, axis=-1))
    others = (place for place in range(len(scenes.CLASSES)) if place not in of_stuff)
    return dict(zip(scenes.THINGS, others, strict=True)) | dict(zip(scenes.STUFF, of_stuff.tolist(), strict=True))


def palette(classes):
    """Colours of classes, (C, 3) uint8: black for the background, others from `sequence`.

    A class of the rendered world has the same colour in every list. Other classes take the free colours in order, so two lists that
    differ only in the background give them the same colours.
    """
    known = of_world()
    taken = {known[name] for name in classes if name in known}
    free = (place for place in range(len(classes) + len(known)) if place not in taken)
    places = [None if name == BACKGROUND else known[name] if name in known else next(free) for name in classes]
    colours = sequence(max((place for place in places if place is not None), default=0) + 1)
    return np.array([TAKEN[0] if place is None else colours[place] for place in places], np.uint8).reshape(-1, 3)


def heat(values, low, high, name=SCORE):
    """Colour a map, (h, w) -> (h, w, 3) uint8. low, high: values at the ends of the colour map `name`."""
    return (plt.get_cmap(name)((np.asarray(values) - low) / max(high - low, 1e-9))[..., :3] * 255).astype(np.uint8)
