"""Open-vocabulary semantic segmentation learned from text alone: multi-grained cross-modal alignment (MGCA).

Users import one thing: `from ovseg import Segmenter`.
"""


def __getattr__(name):  # lazy, so that `ovseg --help` does not import torch
    if name == "Segmenter":
        from .segmentation.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'ovseg' has no attribute {name!r}")
