"""Modules and functions of the network.

``layers.py`` has attention, MLP, block and drop-path, ``tokens.py`` token layout, patches and
position tables, ``masking.py`` the sampling of visible tokens; ``network.py`` combines them: embed,
encode, decode. Start reading at ``network.py``.
"""
