"""Logs of runs: reading and plotting, for ``tools/plot_run.py`` and ``tools/show_run.py``.

``run_log.py`` reads ``log.jsonl`` and extracts curves, ``panels.py`` selects what to plot of a
task, ``curves.py`` plots it with matplotlib (extra ``plots``).
"""
