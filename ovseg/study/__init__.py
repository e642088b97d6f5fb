"""The study: its runs (runs.py), results of all runs (results.py), the paper's findings (findings.py), the same on another processor
(processors.py), the report and figures."""
