"""The files that one batch passes through."""

from __future__ import annotations

import pytest

from tools import trace_batch


def test_a_batch_passes_few_files(capsys: pytest.CaptureFixture[str]) -> None:
    code = trace_batch.main([])
    lines = capsys.readouterr().out.splitlines()
    files = [line.split()[1] for line in lines if line.endswith(tuple("0123456789"))]
    files = [name for name in files if name.endswith(".py")]
    reader, model, loss = (
        next(i for i, name in enumerate(files) if name.startswith(start))
        for start in ("multimae/images/", "multimae/nn/network", "multimae/criterion")
    )
    assert reader < model < loss
    assert code == 0, "\n".join(files)


def test_more_files_than_the_limit_are_an_error() -> None:
    assert trace_batch.main(["--limit", "3"]) == 1
