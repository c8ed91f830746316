"""Logs of runs: reading and plotting, for ``tools/plot_run.py`` and ``tools/show_run.py``.

``run_log.py`` reads ``log.jsonl`` and extracts curves; ``curves.py`` plots them with matplotlib
(extra ``plots``).
"""
