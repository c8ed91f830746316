"""The modality table that a YAML config declares, whatever script the config is for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from multimae.specs.modalities import ModalityTable, default_table
from utils.config.fields import options_of
from utils.logs.errors import UserError


def read_table(path: Path | None) -> ModalityTable:
    """Rows of the default table, changed and extended by the data options of a config.

    Args:
        path: YAML of any script; options that are not about data are passed over.

    Raises:
        UserError: The file cannot be read, or its rows are wrong.
    """
    if path is None:
        return default_table()
    from utils.config.options import DataOptions  # loads PyTorch

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        reason = (str(err) or type(err).__name__).replace("\n", " ")
        raise UserError(f"--config {path}: {reason}") from err
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected `option: value` lines, such as `modalities:`")
    options = options_of(DataOptions())
    try:
        values: dict[str, Any] = {
            key: options[key].coerce(value) for key, value in content.items() if key in options
        }
        return dataclasses.replace(DataOptions(), **values).table()
    except ValueError as err:
        raise UserError(f"--config {path}: {err}") from err
