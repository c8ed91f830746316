"""Tasks: modules that map a batch to losses, and their evaluators.

Start with ``base.py``, the interface to the training loop. ``pretraining.py`` is the pre-training
task, ``reconstruction.py`` its evaluators. ``finetuning.py`` has the run and base classes of
``classification.py``, ``segmentation.py``, ``depth_estimation.py`` and ``taskonomy.py`` (the last
two share ``regression.py``). ``loaders.py`` builds data sets and loaders.
"""
