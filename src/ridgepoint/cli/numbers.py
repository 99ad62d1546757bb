"""`ridgepoint numbers`: the table every AI programmer should know. Prints `plan.numbers`; computes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

SCHEMA = "ridgepoint.numbers/1"
SOURCES_WIDTH = 110  # columns; narrower, a source stands below its figure
CHIPS = ("v100", "a100", "h100", "h200", "b200", "gb200", "mi300x", "tpu-v6e")
FLOOR_CHIPS = ("h100", "gb200")  # of the floors, unless hardware is named
MODELS = ("qwen3-30b-a3b", "gpt-oss-120b", "minimax-m2.5", "deepseek-v3")


def register(app: typer.Typer) -> None:
    app.command(
        "numbers",
        short_help="The table behind the plans.",
        help="Energy, latency, ridge points, bytes per token and $/Mtok floors, computed from the catalogue.",
        epilog="Example: ridgepoint numbers --section ridge --hardware h200",
    )(numbers)


def numbers(
    hardware: Annotated[list[str] | None, typer.Option(help="Accelerators (names or .toml files).")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models (names or config.json paths).")] = None,
    section: Annotated[str | None, typer.Option(help="Only sections whose name contains this.")] = None,
    sources: Annotated[bool, typer.Option(help="Show where each figure comes from.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.numbers/1).")] = False,
) -> None:
    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.errors import ConfigError
    from ridgepoint.plan.named import named_model
    from ridgepoint.plan.numbers import numbers as table_of

    chips, models = [accelerator(name) for name in hardware or CHIPS], [named_model(name) for name in model or MODELS]
    rows = table_of(chips, models, floor_chips=chips if hardware else [accelerator(name) for name in FLOOR_CHIPS])
    if section is not None:
        known = list(dict.fromkeys(row.section for row in rows))
        rows = [row for row in rows if section in row.section]
        if not rows:
            raise ConfigError(f"no section {section!r}", hint="one of " + ", ".join(known))
    if json_:
        print(json.dumps({"schema": SCHEMA, "numbers": [asdict(row) for row in rows]}, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from ridgepoint.cli.figures import figure
    from ridgepoint.cli.screen import Screen

    out = Screen()
    aside = out.width >= SOURCES_WIDTH
    for name in dict.fromkeys(row.section for row in rows):
        table = Table(
            box=None, pad_edge=False, header_style="bold", title=name, title_justify="left", title_style="bold"
        )
        table.add_column("what")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("from", no_wrap=True)
        if sources and aside:
            table.add_column("source or formula", style="dim")
        for row in rows:
            if row.section == name:
                what = Text(row.what).append(f"\n{row.how}", style="dim") if sources and not aside else Text(row.what)
                cells: list[str | Text] = [what, figure(row.low, row.high, row.unit), f"{row.provenance}_"]
                table.add_row(*cells, *([row.how] if sources and aside else []))
        out.print(table)
        out.print()
