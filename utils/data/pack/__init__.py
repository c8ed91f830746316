"""Packed data sets: the files of each modality in few large ones (tools/pack_dataset.py)."""
