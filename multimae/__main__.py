"""``python -m multimae``: the ``multimae`` command."""

from multimae.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
