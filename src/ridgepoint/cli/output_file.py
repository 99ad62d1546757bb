"""Files that a command writes at its end: refused at its start, because nobody should wait for an answer that has nowhere to
go, and then whole or not there at all."""

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
    touched = [each for each in (value, folder if _is_plain(value) else value) if each.exists()]
    if not all(os.access(each, os.W_OK) for each in touched):
        raise ConfigError(f"{option} {value} cannot be written: permission denied")
    return value


def write_output(path: Path, text: str) -> None:
    """Written aside and renamed. What is no plain file (a device, a pipe, a link) takes the text as it comes."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial") if _is_plain(path) else path
    try:
        aside.write_text(text, encoding="utf-8")
        if aside != path:
            aside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if aside != path:
            aside.unlink(missing_ok=True)


def _is_plain(path: Path) -> bool:
    return not path.is_symlink() and (path.is_file() or not path.exists())
