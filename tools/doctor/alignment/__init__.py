"""Checks of alignment: do the modalities of a sample show the same view?

``edges`` extracts edge features, ``edge_correlation`` correlates those of two modalities as paired,
turned, shifted and shuffled, ``agreement`` summarises the correlations of a data set, and
``misaligned`` decides which samples are flipped, shifted or swapped. Start with ``misaligned``.
"""
