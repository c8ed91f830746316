"""Earth: tiles of the planet with aligned colour, elevation and land cover.

``tile_files.make_earth`` writes the data set: start there. ``packages`` reads the three source maps
from Python packages, ``maps`` samples them at latitudes and longitudes, ``regions`` says which part
of the planet belongs to which split, ``land_cover`` names the classes. Command:
``tools/make_earth.py``.
"""
