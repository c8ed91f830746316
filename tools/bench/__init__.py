"""Benchmarks of the training step (tools/bench_step.py)."""
