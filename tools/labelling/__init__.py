"""Pseudo labels: depth and classes predicted from RGB, for pre-training (tools/pseudo_label.py)."""
