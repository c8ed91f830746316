"""Data: from folders of images to the batches of a training run.

Start with :mod:`~utils.data.dataset` (data set and loaders). It reads files through
:mod:`~multimae.images.folders`, cuts views with :mod:`~utils.data.transforms`, is indexed by
:mod:`~utils.data.samplers`, and its samples become :mod:`~utils.data.batches`, stacked in
:mod:`~utils.data.shared_memory`. :mod:`~utils.data.sets` has the data sets of single tasks,
:mod:`~multimae.images.pack` the packed format.
"""
