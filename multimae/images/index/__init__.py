"""The index of a data set: which files exist, as flat arrays.

Start with ``listing.py``: folders are listed and their names paired. ``merging.py`` pairs
names that differ between modalities, ``index_cache.py`` keeps the result for later runs and other
processes, ``listing_errors.py`` says what is wrong with folders.
"""
