"""Packed data sets: the files of each modality in a few large ones.

Start with :mod:`~utils.data.pack.layout`, the format; :mod:`~utils.data.pack.reading` reads it
during training. tools/pack_dataset.py writes it.
"""
