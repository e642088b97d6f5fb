"""Whether a CLIP's patches say anything in a dense mode: `python -m ovseg.study.sanity`, after `dvc repro prepare`.

A dense mode extracts patch features in a way that CLIP was not trained for. For some models the result is noise, from which no decoder
can learn. The measure: among N pairs with distinct captions, the share of pictures whose mean patch feature is nearest to their own
caption. Chance is 1 / N; CLIP's embedding of the whole picture gives an upper reference. The measure tells whether patches represent the
content of the picture, not whether each represents its own location. For that, see the untrained runs in the report.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from tabulate import tabulate

from .. import params
from ..clip.dense import DENSE_MODES
from ..data import preparation, shards
from ..data.images import center_crop

WHOLE = "the whole picture"
DOUBT = 0.01  # p-value above which a share counts as chance


def measure(clip, pairs, batch=64):
    """{WHOLE or a dense mode: the share of pictures, 0..1, nearest to their own caption by cosine}.

    clip: FrozenCLIP. pairs: from `distinct_pairs`. batch: pictures per forward pass.
    """
    embeddings = {name: [] for name in (WHOLE, *DENSE_MODES)}
    for start in range(0, len(pairs), batch):
        images = np.stack([image for image, _ in pairs[start : start + batch]])
        embeddings[WHOLE].append(clip.encode_image(images))
        for mode, dense in clip.encode_modes(images, DENSE_MODES).items():
            embeddings[mode].append(dense.mean((2, 3)))  # n, d
    texts = F.normalize(clip.encode_text([caption for _, caption in pairs]), dim=1)
    own = torch.arange(len(pairs), device=texts.device)
    return {name: ((torch.cat(rows) @ texts.T).argmax(1) == own).float().mean().item() for name, rows in embeddings.items()}


def is_noise(share, count):
    """Whether guessing among `count` captions, for `count` pictures, reaches this share with a probability above DOUBT."""
    return bool(binomtest(round(share * count), count, 1 / count, alternative="greater").pvalue > DOUBT)


def distinct_pairs(paths, count, size):
    """The first `count` usable pairs of shards with distinct captions, or all if there are fewer: [((size, size, 3) uint8, caption)]."""
    found = {}
    for _, image, caption in (pair for path in paths for pair in shards.pairs(path, shards.Report())):
        if len(found) == count:
            break
        if caption not in found:
            found[caption] = center_crop(image, size)
    return [(image, caption) for caption, image in found.items()]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ovseg.study.sanity", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, help="how many of the prepared pairs, at least 10 (default: %(default)s)")
    count = parser.parse_args(arguments).pairs
    from ..clip.frozen import FrozenCLIP  # takes seconds to import

    try:
        if count < 10:
            raise ValueError(f"--pairs = {count}: at least 10")
        params.enter_project()
        p = params.load()
        if not Path("data/prepared/shards.txt").is_file():
            raise FileNotFoundError("data/prepared holds no shards.txt: `dvc repro prepare` makes it")
        pairs = distinct_pairs(preparation.load_paths("data/prepared"), count, p.clip.image_size)
        found = measure(FrozenCLIP.open(p.clip, params.device(p.device)), pairs)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    print(f"{p.clip.model}: pictures nearest to their own caption among {len(pairs)}; chance {100 / len(pairs):.1f}%")
    rows = [[name, f"{100 * share:.1f}%", "noise" if is_noise(share, len(pairs)) else ""] for name, share in found.items()]
    print(tabulate(rows, tablefmt="plain"))
    if is_noise(found[p.clip.dense], len(pairs)):
        print(f"warning: clip.dense = {p.clip.dense!r} gives noise: its patches find captions no better than guessing", file=sys.stderr)


if __name__ == "__main__":
    main()
