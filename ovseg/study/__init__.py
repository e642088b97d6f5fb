"""The study: its runs, and what is made from their results.

Inputs: params.yaml (the lines of `ablations`), cached features and benchmarks. Outputs: models, results/runs/*.json, the report and its
figures. Reading order: runs.py (training and evaluating a run), results.py (all results as one table), findings.py (the paper's
findings), report.py and charts.py; story.py and figures.py (text and figures of the notebooks), jobs.py (parallel stages),
execute.py (running a notebook).
"""
