"""From an image and class names to a label map: segmenter (the public object), names, windows, resizing, units; hub publishes models."""
