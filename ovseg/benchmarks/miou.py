"""Mean intersection over union (mIoU) over a whole dataset."""

import numpy as np
import torch

from .layouts import ignored


class MeanIoU:
    """IoU of each class from one confusion matrix over all images. Pixels ignored in the truth are not counted."""

    def __init__(self, classes):
        self.classes = classes
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)  # rows truth, columns prediction

    def update(self, predicted, truth):
        """Add an image. predicted, truth: (H, W) integer arrays or tensors, 0 <= predicted < len(classes) where truth is not ignored."""
        arrays = (np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels) for labels in (predicted, truth))
        predicted, truth = (labels.astype(np.int64) for labels in arrays)
        cells = (truth * len(self.classes) + predicted)[truth != ignored(len(self.classes))]
        self.matrix += np.bincount(cells, minlength=self.matrix.size).reshape(self.matrix.shape)

    def compute(self):
        """{class: IoU in percent}, None for a class that is neither in the truth nor predicted."""
        both = self.matrix.diagonal()
        union = self.matrix.sum(0) + self.matrix.sum(1) - both
        return {name: (100 * both[i] / union[i]).item() if union[i] else None for i, name in enumerate(self.classes)}


def mean(iou):
    """Mean over the classes whose IoU is not None; None if all are. iou: from MeanIoU.compute."""
    values = [value for value in iou.values() if value is not None]
    return sum(values) / len(values) if values else None
