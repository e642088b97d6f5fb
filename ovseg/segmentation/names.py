"""Class names: of a segmentation call, with additional names that count as background, and of class lists in files.

A class may have several names, as in "car; automobile; sedan". The first one stands for it in tables and figures.
"""

import itertools
import re
from pathlib import Path

import torch
import torch.nn.functional as F

from .windows import BACKGROUND

# The softmax over one class is 1 everywhere, so background needs names to compete with it. Large, common surroundings, after the
# background classes of CLIP-ES (Lin et al., CVPR 2023, https://arxiv.org/abs/2212.09506), without objects that users may search for.
OTHERS = """ground land grass tree building wall sky lake water river sea railway cloud house mountain ocean road rock street valley bridge
sign""".split()
UNLABELLED = {"unlabeled", "unlabelled", "void", "ignore", "ignored"}  # in other projects' lists


def read_classes(path):
    """Read a class list, one class per line: ["background", "car; automobile", ...]. Indices are dropped if they are 0, 1, 2, ... in order,
    and LabelMe's `_background_` is read as "background". Raises ValueError with the number of a wrong line, and OSError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8: save it as UTF-8") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    indexed = [re.fullmatch(r"(\d+)[:.,)\s]\s*(.+)", line) for _, line in lines]
    if lines and all(indexed):
        if wrong := [number for (number, _), match, index in zip(lines, indexed, itertools.count()) if int(match[1]) != index]:
            raise ValueError(f"line {wrong[0]}: the lines have indices, which must be 0, 1, 2, ... in order, or be left out")
        lines = [(number, match[2]) for (number, _), match in zip(lines, indexed, strict=True)]
    classes, line_of = [], {}
    for number, line in lines:
        where, names = f"line {number}, {line!r}", synonyms(line)
        if wrong := re.search(r"""[,\t"\[\]{}]|^'|'$|^[-*#] |[|#]|^\d+(:|[.)]\s)|^;|;\s*;|;$""", line):
            raise ValueError(f"{where}, holds {wrong[0]!r}: must be one class: its name, or several with ; between them (car; automobile)")
        if line.strip("_").lower() == BACKGROUND:
            names = [BACKGROUND]
        for name in names:
            if name.strip("_").lower() in UNLABELLED:
                raise ValueError(f"{where}: no class: write {BACKGROUND!r} for pixels of no other class; 255 marks pixels to ignore")
            if name.lower() == BACKGROUND and (classes or names[1:]):
                raise ValueError(f"{where}: {BACKGROUND!r} must be the first class, without other names")
            if name.lower() in line_of:
                raise ValueError(f"{where}: {name!r} is listed twice, the first time in line {line_of[name.lower()]}")
            line_of[name.lower()] = number
        classes.append("; ".join(names))
    if len(classes) < 2:
        raise ValueError(f"holds {len(classes)} classes: must be at least 2, one per line")
    return classes


def synonyms(name):
    """The names of a class: "car; automobile" -> ["car", "automobile"]."""
    return [part.strip() for part in name.split(";")]


def all_names(classes):
    """The names of all classes, in order."""
    return [name for of_class in classes for name in synonyms(of_class)]


def merged(embeddings, classes, how):
    """Class embeddings from those of `all_names(classes)`, (N, d), unit length. how: segment.synonyms; mean: (C, d), the mean of a class's
    names, unit length; max: (C, S, d), its names, repeated up to the largest number S. Unchanged where every class has one name."""
    of_classes = embeddings.split([len(synonyms(name)) for name in classes])
    if (most := max(map(len, of_classes))) == 1:
        return embeddings
    if how == "mean":
        return torch.stack([F.normalize(names.mean(0), dim=0) for names in of_classes])
    return torch.stack([names[torch.arange(most) % len(names)] for names in of_classes])


def check_names(names, background=False, others=None):
    """Strip and validate the names of a call, each a str or several: (names, others). others = None: `besides` for a class with background,
    else none. Raises ValueError if a name is empty, occurs twice or is reserved, or if a single class has no others."""
    names = _listed("names", names)
    default = besides(names) if background and len(names) == 1 else []
    others = default if others is None else _listed("others", others)
    if not names or len(names) + len(others) < 2:
        raise ValueError(f"names = {names!r}: must be at least two classes, or one with background=True or with others")
    every = all_names([*names, *others])
    if twice := [name for name in every if every.count(name) > 1]:
        raise ValueError(f"names and others must be distinct: {twice[0]!r} occurs twice")
    if (background or others) and BACKGROUND in map(str.lower, all_names(names)):
        raise ValueError("names must not include 'background' if background=True or others are given")
    return names, others


def besides(names):
    """OTHERS without names that are a prefix of a class word, or start with one, and so compete ("Apple trees" excludes "tree")."""
    words = [word for name in all_names(names) for word in name.lower().split()]
    return [other for other in OTHERS if not any(other.startswith(word) or word.startswith(other) for word in words)]


def _listed(key, names):
    names = [names] if isinstance(names, str) or not hasattr(names, "__iter__") else list(names)
    if any(not isinstance(name, str) or not all(synonyms(name)) for name in names):
        raise ValueError(f"{key} = {names!r}: must be non-empty strings")
    return ["; ".join(synonyms(name)) for name in names]
