"""Measure a machine and suggest how to run a configuration on it, for `tools/plan_run.py`.

Start at `advice.py`: it runs the measurements and decides. `plan_options.py` reads the
configuration, `planned_run.py` builds the run as its script would, `measurements.py` times loader
and steps, `resources.py` knows memory and disk space, `plan_report.py` prints the result.
"""
