"""The study: its runs, results of all runs, the paper's findings, the same on another processor, the report and figures."""
