"""The output folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from utils.config.parse import save_config
from utils.distributed.world import World
from utils.logs.errors import UserError

CONFIG = "config.yaml"


def prepare_output_dir(
    output_dir: str, config: Any, world: World, *, keep_config: bool = False
) -> None:
    """Create the folder and write the resolved configuration into it (rank 0).

    Args:
        output_dir: The folder; empty: none.
        config: The configuration.
        world: Processes.
        keep_config: Leave a configuration that is there, that of the run which is scored.

    Raises:
        UserError: It cannot be created or written to.
    """
    if not output_dir or not world.is_main:
        return
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits do not bind a superuser or a read-only mount: try.
        probe = path / f".write-test-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise UserError(
            f"output_dir {path} cannot be written to ({err.strerror or err}). "
            "Choose another --output_dir."
        ) from err
    if not (keep_config and (path / CONFIG).is_file()):
        save_config(config, path / CONFIG)
