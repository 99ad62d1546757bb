"""Options from files: a TOML file of option names, or a plan. What is typed on the command line stands above both."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import typer

from ridgepoint.errors import ConfigError

FILES = ("config", "plan")  # the options that name such files, which no such file may set


def from_config(ctx: typer.Context, file: Path | None) -> Path | None:
    """Callback of `--config FILE.toml`: keys are the command's long options with underscores."""
    if file is not None and not ctx.resilient_parsing:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {file} cannot be read: {error}") from error
        known = [param.name for param in ctx.command.params if param.name and param.name not in FILES]
        for key in values:
            if key not in known:
                raise ConfigError(f"--config {file}: unknown option {key!r}", hint="known: " + ", ".join(known))
        _offer(ctx, values, f"--config {file}")
    return file


def from_plan(ctx: typer.Context, file: Path | None) -> Path | None:
    """Callback of `--plan FILE.json`."""
    if file is not None and not ctx.resilient_parsing:
        from ridgepoint.engine.from_plan import options_of_plan

        _offer(ctx, options_of_plan(file), f"--plan {file}")
    return file


def _offer(ctx: typer.Context, values: dict[str, Any], source: str) -> None:
    """Make `values` the defaults of options that were not typed."""
    before = ctx.default_map or {}
    both = sorted(set(before) & set(values))
    if both:
        raise ConfigError(f"{', '.join(both)} given by --config and by --plan", hint="leave one of them out")
    ctx.default_map = {**before, **values}
    print(
        f"{source}: " + ", ".join(f"{key} {value}" for key, value in values.items() if "key" not in key),
        file=sys.stderr,
    )
