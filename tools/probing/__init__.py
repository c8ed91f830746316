"""Frozen-feature evaluation, for `tools/probe.py`.

`frozen_features.py` loads an encoder and extracts pooled features, `classifiers.py` scores them by
k nearest neighbors and a linear probe, `probe_options.py` defines the command's options.
"""
