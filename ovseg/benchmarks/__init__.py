"""From images with label maps to the mIoU of a segmenter: layouts, datasets, miou, evaluation, calibration (of the background)."""
