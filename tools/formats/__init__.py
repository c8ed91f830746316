"""Which formats are read, and how: ``samples`` writes files, ``verdicts`` reads and judges them.

Command: ``tools/format_table.py``.
"""
