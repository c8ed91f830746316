"""Specs of modalities, heads and models, and model sizes.

``modalities.py`` defines the modality table, ``preparation.py`` compares the inputs of a run with
those of weights, ``coercion.py`` converts YAML values to field types, ``registry.py`` lists model
sizes and builds adapters, ``heads.py`` builds heads, ``spec.py`` defines the spec stored with
weights, ``errors.py`` defines errors that users can fix, ``commands.py`` how commands end. Start
reading at ``modalities.py``.
"""
