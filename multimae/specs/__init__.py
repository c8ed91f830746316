"""Specs of modalities, heads and models, and model builders.

``modalities.py`` defines the modality table, ``coercion.py`` converts YAML values to field types,
``registry.py`` lists model sizes and builds adapters, ``heads.py`` builds heads, ``spec.py``
defines the spec stored with weights, ``build.py`` builds models, ``errors.py`` defines errors that
users can fix. Start reading at ``modalities.py``.
"""
