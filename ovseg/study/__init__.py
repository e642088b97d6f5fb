"""The study: which runs it has, and what is made of their results.

In come params.yaml (the lines of `ablations`), cached features and benchmarks; out go models, results/runs/*.json, the report and its
figures. Read runs.py (runs, training and evaluating one), results.py (all results as one table), findings.py (the paper's findings),
report.py and charts.py; story.py, examples.py, figures.py and curves.py (what notebooks say and show), colours.py, jobs.py (stages side by
side), execute.py (a notebook).
"""
