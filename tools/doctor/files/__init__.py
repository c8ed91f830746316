"""Checks of files: listing, decoding, values, and comparisons within a modality.

``file_listing`` pairs files by name, ``file_checks`` examines one file (start there),
``outliers`` compares the files of a modality, ``duplicates`` finds repeated images and leaks
between sets, ``modality_statistics`` computes means, class weights and units from ``histograms``.
"""
