"""Comparison of initial weights for fine-tuning over several seeds, for ``tools/results.py``.

Start with ``comparison.py``: it reads a plan from ``cfgs/results`` and the scores from the runs'
logs. ``comparison_report.py`` writes the table into a Markdown file and plots the curves.
"""
