"""Interactive inspection of runs (notebooks/inspect.ipynb): why a pixel got its label, and what the losses select.

Reading order: view.py (what a run computes), sources.py (runs and pictures), panels.py (drawing), inspector.py (widgets).
"""
