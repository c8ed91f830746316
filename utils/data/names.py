"""Names in a data set: of files, folders and classes."""

from __future__ import annotations

import json
from pathlib import Path

from utils.logs.errors import UserError

CLASSES_FILE = "classes.json"
"""Names of the classes of label images, by id; beside the modality folders."""
SETTINGS_FILE = "prepared.json"
"""What the files of a modality were made with; beside them."""
LAYOUT = "root/{modality}/{sub-folder}/{name}.{extension}"


def read_class_names(root: str | Path) -> tuple[str, ...] | None:
    """Class names by id from ``root/classes.json`` (``{"classes": ["void", "wall", ...]}``).

    Returns:
        The names, or ``None`` if there is no such file.

    Raises:
        UserError: The file exists but does not hold that.
    """
    path = Path(root) / CLASSES_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: not readable as JSON ({err}). Mend or remove the file.") from err
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f'{path}: expected {{"classes": ["name of id 0", "name of id 1", ...]}}.')
    return tuple(names)
