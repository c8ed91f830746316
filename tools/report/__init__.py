"""Logs of runs: reading and plotting, for ``plot_run.py``, ``show_run.py`` and ``run_board.py``.

``run_log.py`` reads ``log.jsonl`` and extracts curves, ``panels.py`` selects what to plot of a
task, ``curves.py`` plots it with matplotlib (extra ``plots``), ``board.py`` a page
of many runs.
"""
