"""Configuration: options as dataclass fields, from defaults, YAML files and the command line.

Start with ``options.py``, the sections that all scripts share; ``pretrain_options.py`` and
``finetune_options.py`` extend them, and the latter's sections are extended by one file a task.
``fields.py`` declares an option, ``command_line.py`` reads flags, ``parse.py`` merges all sources
and reports every problem at once, ``help_text.py`` writes ``--help``.
"""
