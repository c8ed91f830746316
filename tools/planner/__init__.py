"""Measure this machine for a minute, then say how to run a configuration (tools/plan_run.py)."""
