"""Data doctor: finds what is wrong with a data set on the CPU, before training.

``examine.examine_dataset`` runs all checks: start there. ``files`` checks each file and compares
the files of a modality, ``alignment`` tests whether the modalities of a sample show the same view,
``report`` writes the results. ``chunk_scan`` is the unit of work of one process, ``findings`` the
result type of all checks. Command: ``tools/check_dataset.py``.
"""
