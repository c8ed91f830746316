"""Packs: image folders as few large files that load several times faster.

``packing`` writes packs, ``unpacking`` restores and verifies the original files. The format is
described in ``multimae/images/pack``, which reads packs. Command: ``tools/pack_dataset.py``.
"""
