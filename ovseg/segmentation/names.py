"""Class names of a segmentation call, and additional names that count as background."""

from .windows import BACKGROUND

# The softmax over one class is 1 everywhere, so background needs names to compete with it. Large, common surroundings, after the
# background classes of CLIP-ES (Lin et al., CVPR 2023, https://arxiv.org/abs/2212.09506), without objects that users may search for.
OTHERS = """ground land grass tree building wall sky lake water river sea railway cloud house mountain ocean road rock street valley bridge
sign""".split()


def check_names(names, background=False, others=None):
    """Strip and validate the names of a call, each a str or several: (names, others). others = None: `besides` for a class with background,
    else none. Raises ValueError if a name is empty, occurs twice or is reserved, or if a single class has no others."""
    names = _listed("names", names)
    default = besides(names) if background and len(names) == 1 else []
    others = default if others is None else _listed("others", others)
    if not names or len(names) + len(others) < 2:
        raise ValueError(f"names = {names!r}: must be at least two classes, or one with background=True or with others")
    if twice := [name for name in (*names, *others) if (*names, *others).count(name) > 1]:
        raise ValueError(f"names and others must be distinct: {twice[0]!r} occurs twice")
    if (background or others) and BACKGROUND in map(str.lower, names):
        raise ValueError("names must not include 'background' if background=True or others are given")
    return names, others


def besides(names):
    """OTHERS without names that are a prefix of a class word, or start with one, and so compete ("Apple trees" excludes "tree")."""
    words = [word for name in names for word in name.lower().split()]
    return [other for other in OTHERS if not any(other.startswith(word) or word.startswith(other) for word in words)]


def _listed(key, names):
    names = [names] if isinstance(names, str) or not hasattr(names, "__iter__") else list(names)
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise ValueError(f"{key} = {names!r}: must be non-empty strings")
    return [name.strip() for name in names]
