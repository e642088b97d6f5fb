"""Pictures with label maps in, mIoU out: data set layouts, class names, evaluation, calibration of thresholds."""
