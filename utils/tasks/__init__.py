"""Tasks: modules that map a batch to losses, and their evaluators.

Start with ``base.py``, the interface to the training loop; ``job.py`` trains a task from its
configuration on. ``pretraining.py`` is the pre-training task, ``reconstruction.py`` its evaluators.
``finetuning.py`` has base classes of
``classification.py``, ``segmentation.py``, ``depth_estimation.py`` and ``taskonomy.py`` (the last
two share ``regression.py``). ``loaders.py`` builds data sets and loaders.
"""
