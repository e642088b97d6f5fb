"""Semantic segmentation benchmarks: from images with label maps to the mIoU of a segmenter.

In reading order: layouts (files and labels of the paper's benchmarks), datasets (reading them, or your own), miou (the
metric), evaluation (a segmenter on a benchmark), calibration (the background threshold, on images that are not evaluated).
"""
