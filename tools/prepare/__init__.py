"""Preparation of published data sets for the training scripts (see SETUP.md).

One module per data set: ``ade20k``, ``hypersim``, ``nyuv2``, ``taskonomy_archives``. ``matlab``
reads HDF5 and MATLAB files; ``prepare_command`` holds the flags and exit codes that the commands
``tools/prepare_*.py`` share. Start with ``ade20k``, the shortest.
"""
