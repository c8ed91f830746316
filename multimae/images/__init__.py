"""Images: from a file to pixels, from pixels to model inputs.

Start with :mod:`~multimae.images.readers` (a file to stored pixels) and
:mod:`~multimae.images.pixels` (their types and checks; ``pixel_errors`` says what is wrong).
:mod:`~multimae.images.folders` matches the files of aligned folders, plain or packed
(:mod:`~multimae.images.pack`). :mod:`~multimae.images.views` crops and resizes images,
:mod:`~multimae.images.preprocess` normalises batches on the device;
:mod:`~multimae.images.inputs` does all of it for a model in use.
"""
