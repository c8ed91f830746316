"""Packed data sets: the files of each modality in a few large ones.

Start with :mod:`~multimae.images.pack.layout`, the format;
:mod:`~multimae.images.pack.reading` reads it. tools/pack_dataset.py writes it.
"""
