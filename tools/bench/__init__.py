"""Benchmarks of the training step, for `tools/bench_step.py`.

Start at `step_report.py`, which times the product's step against two baselines and counts what each
computes. `contenders.py` defines the steps, `plain_step.py` the plain implementation of the method;
`counting.py` counts FLOPs, memory and host syncs; `timing.py` holds the clocks. `cost_table.py`
varies one setting at a time.
"""
