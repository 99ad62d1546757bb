"""`ridgepoint models`: what can be served here without fetching anything, and which families are understood."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command(
        "models",
        short_help="List the models that are here.",
        help="List the embedded model, models in the local hub cache, and the supported families.",
        epilog="Example: ridgepoint models --json",
    )(models)


def models(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.models/1).")] = False,
) -> None:
    from ridgepoint.engine.inventory import inventory

    found = inventory()
    if json_:
        print(json.dumps({"schema": "ridgepoint.models/1", **found}, indent=2))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    from ridgepoint.cli.screen import Screen
    from ridgepoint.units import si

    out = Screen()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("model", "where", "family", "weights", "can be served"):
        table.add_column(head)
    for one in found["models"]:
        size = si(one["weights_bytes"], "B") if one["weights_bytes"] else "-"
        table.add_row(
            one["name"], one["kind"], one["model_type"] or "-", size, "yes" if one["served"] else one["reason"]
        )
    if found["models"]:
        out.print(table)
    else:
        out.print("no models here (hint: ridgepoint serve ORGANISATION/NAME fetches one from the hub)", highlight=False)
    out.print("\n[bold]families[/bold]: " + ", ".join(found["families"]), highlight=False, soft_wrap=True)
