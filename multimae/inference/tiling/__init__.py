"""Prediction of large images by overlapping tiles, in memory that does not grow with their height.

``windows.py`` reads boxes of images, ``grid.py`` places tiles and blends their outputs, ``tta.py``
averages over flips and scales, ``row_files.py`` writes files row by row. Start reading at
``tiles.py``.
"""
