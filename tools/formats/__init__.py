"""Which formats are read: ``format_samples`` writes files, ``verdicts`` reads and judges them.

Command: ``tools/format_table.py``.
"""
