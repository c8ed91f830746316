"""Runs that are killed or made to fail on purpose.

`small_runs.py` starts and inspects tiny training runs. `kills.py` kills and resumes them and
compares the results by `fingerprint.py` (`tools/torture_resume.py`). `failures.py` injects errors
and signals and checks how every process ends (`tools/torture_failures.py`). Needs Linux.
"""
