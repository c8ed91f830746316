"""Packs: image folders as few large files that load several times faster.

``packing`` writes packs, ``unpacking`` restores and verifies the original files. The format is
described in ``utils/data/pack``, which reads packs in training. Command: ``tools/pack_dataset.py``.
"""
