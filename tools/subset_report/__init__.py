"""Scores of a checkpoint on every subset of its inputs, for ``tools/modality_report.py``.

Start with ``pretrained_subsets.py`` (reconstruction losses) or ``finetuned.py`` (task metrics);
``scores.py`` holds the report and its text table, ``report_picture.py`` draws it.
"""
