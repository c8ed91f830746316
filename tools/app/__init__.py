"""The interactive demo: one page on loopback, built from a model's modality rows."""
