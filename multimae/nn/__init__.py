"""Parts of the network.

``layers.py`` has attention, MLP, block and drop-path, ``tokens.py`` the layout of the sequence,
patches and position tables, ``masking.py`` the sampling of visible tokens, ``network.py`` puts them
together: embed, encode, decode. Start reading at ``network.py``.
"""
