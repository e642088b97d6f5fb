"""From an image and class names to a label map.

Read units.py (pixels, meta-points, groups), resizing.py (a picture before it is cut), windows.py (sliding windows, their scores as
those of the picture), names.py (the names of a call, and what else there is), segmenter.py (the Segmenter: the one public object for
users).
"""
