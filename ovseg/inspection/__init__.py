"""Interactive inspection of a segmenter: why a pixel got its label, and what the losses select, as parameters change.

Inputs: a run in models/, a picture and texts. Output: a page of panels (notebooks/inspect.ipynb). Reading order: view.py (what a run
computes for a picture), pictures.py (sources of pictures), panels.py (drawing), inspector.py (sliders, clicks, the page).
"""
