"""Inspection of runs: view.py (what a run computes of a picture), sources.py (runs, pictures), panels.py (drawing), inspector.py (widgets)."""
