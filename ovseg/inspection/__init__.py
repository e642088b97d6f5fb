"""Looking inside a segmenter: why a pixel got its label, and what the losses take hold of, while values are moved.

In come a run of models/, a picture and texts; out comes a page of panels (notebooks/inspect.ipynb). Read view.py (what a run computes of a
picture), pictures.py (where pictures come from), panels.py (drawing), inspector.py (sliders, clicks, the page).
"""
