"""Descriptions of modalities, heads and models, and models built from them.

``modalities.py`` is the table of modalities, ``coercion.py`` converts YAML values to its types,
``registry.py`` has the sizes and makes adapters, ``heads.py`` fits heads to encoders,
``spec.py`` is the description stored with weights, ``build.py`` builds models. Start reading at
``modalities.py``.
"""
