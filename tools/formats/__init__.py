"""Which formats are read, and how: ``format_samples`` writes files, ``verdicts`` reads and judges them.

Command: ``tools/format_table.py``.
"""
