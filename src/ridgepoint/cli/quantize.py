"""`ridgepoint quantize`: a checkpoint to one of fewer bits per weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_FORMATS = Literal["int8", "int8-g128", "int4-g32", "int4-g128", "fp8-block", "mxfp4"]


def register(app: typer.Typer) -> None:
    app.command(
        "quantize",
        help="Write the checkpoint SOURCE (folder, hub id, or 'stdlib-moe' for the embedded model) to the new folder OUT "
        "in fewer bits. Norms, embeddings and routers stay as they are.",
        epilog="Example: ridgepoint quantize stdlib-moe /tmp/stdlib-int4 --format int4-g32",
    )(quantize)


def quantize(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint, or 'stdlib-moe'.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    format_: Annotated[_FORMATS, typer.Option("--format", help="What matrices become.")],
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave matrices of this name as they are; * matches, repeat for more.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ridgepoint.engine.source import find_model
    from ridgepoint.quantize.convert import convert
    from ridgepoint.quantize.formats import format_named

    found = find_model(source, revision=revision)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{found.name} to {format_}", total=None)
        report = convert(
            found.folder, out, format_named(format_), exclude=exclude or (),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if json_:
        print(json.dumps(report, indent=2))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from ridgepoint.units import seconds, si

    print(
        f"{report['target']}: {report['format']} by {report['method']}, {si(report['source_bytes'], 'B')} to "
        f"{si(report['target_bytes'], 'B')}, {report['bits_per_quantised_weight']:.2f} bits per quantised weight, "
        f"in {seconds(report['seconds'])}"
    )
    print("relative rms error of the weights: " + ", ".join(
        f"{role} {error:.2%}" for role, error in report["relative_rms_error"].items()
    ))  # fmt: skip
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
