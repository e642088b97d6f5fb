"""Inspection of runs: view.py (runs, pictures, what is computed of them) and inspector.py (the page)."""
