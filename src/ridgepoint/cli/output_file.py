"""Files that a command writes at its end, refused at its start: nobody should wait for an answer that has nowhere to go."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from ridgepoint.errors import ConfigError


def output_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """For `typer.Option(callback=)`: `value` if a file can be written there."""
    if value is None:
        return None
    folder, option = value.parent, param.opts[0]
    if value.is_dir():
        raise ConfigError(f"{option} {value} is a folder", hint="name a file")
    if not folder.is_dir():
        raise ConfigError(f"{option} {value}: there is no folder {folder}", hint="make it first")
    if not os.access(value if value.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {value} cannot be written: permission denied")
    return value
