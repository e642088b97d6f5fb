"""Semantic segmentation benchmarks: images with label maps in, mIoU of a segmenter out.

In reading order: layouts (files and labels of the paper's benchmarks), datasets (reading them, or your own), miou (the
metric), encoding (CLIP's features of them, cached), evaluation (a segmenter on a benchmark), calibration (the threshold of
the background, on images that are not evaluated).
"""
