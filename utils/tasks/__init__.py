"""Tasks: modules that map a batch to losses, and the evaluators that score them.

Start with ``base.py``, the interface to the training loop. ``pretraining.py`` and its evaluators
in ``reconstruction.py`` are one task; ``finetuning.py`` holds the run and the base classes that
``classification.py``, ``segmentation.py``, ``depth_estimation.py`` and ``taskonomy.py`` share (the
last two through ``regression.py``). ``loaders.py`` builds the data sets and loaders of all.
"""
