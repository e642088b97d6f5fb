"""From an image and class names to a label map: sliding windows, semantic units, the Segmenter."""
