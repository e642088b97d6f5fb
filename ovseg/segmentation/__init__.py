"""From an image and class names to a label map.

See units.py (pixels, meta-points, groups), resizing.py (image resizing), windows.py (sliding windows and stitching of their scores),
names.py (validation of class names, and additional background names), segmenter.py (the Segmenter, the only public object for
users).
"""
