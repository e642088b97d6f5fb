"""Inspection of runs: view.py (what is computed of a picture), sources.py (runs, pictures), panels.py (drawing), inspector.py (widgets)."""
