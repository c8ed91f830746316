"""Weights in and out of files.

``files.py`` reads and writes weight files without running code from them, ``atomic.py`` replaces
files atomically and computes checksums (without PyTorch), ``load.py`` copies weights into a model,
``convert.py`` maps names to and from ViT, ``pretrained.py`` saves and loads models with their
description, ``guess.py`` infers a missing description, ``timm_models.py`` reads timm's models.
Start reading at ``pretrained.py``.
"""
