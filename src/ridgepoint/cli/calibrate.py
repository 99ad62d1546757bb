"""`ridgepoint calibrate`: measure this machine into a hardware file the planner reads like any other."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ridgepoint.errors import ConfigError
from ridgepoint.units import si


def register(app: typer.Typer) -> None:
    app.command("calibrate", epilog="Example: ridgepoint calibrate --out this-machine.toml")(calibrate)


def calibrate(
    out: Annotated[Path | None, typer.Option(help="Write the hardware file here instead of stdout.")] = None,
    name: Annotated[str, typer.Option(help="The hardware's id in the file.")] = "this-machine",
    seconds: Annotated[float, typer.Option(help="Time budget of each of the dozen measurements.")] = 0.3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Measure FLOP/s by type and size, bandwidth by memory level and step overhead; write them with their provenance."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(f"--name must be lower-case letters, digits and dashes, got {name!r}")
    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds must lie in (0, 60], got {seconds:g}")
    from ridgepoint.catalog.hardware import accelerator_from_table
    from ridgepoint.cost.machine import measure_machine

    measured = measure_machine(
        name, budget_s=seconds, progress=lambda what: print(f"measuring {what}", file=sys.stderr)
    )
    text = measured.to_toml()
    import tomllib

    accelerator_from_table(name, tomllib.loads(text)[name])  # the file must pass the catalogue's own gate
    for kind, by_size in measured.measure_flops_per_s.items():
        best = max(by_size, key=lambda size: by_size[size])
        print(f"{kind}: {si(by_size[best], 'FLOP/s')} at {best}", file=sys.stderr)
    for size, rate in measured.measure_bytes_per_s.items():
        print(f"{si(float(size), 'B')}: {si(rate, 'B/s')}", file=sys.stderr)
    if out is not None:
        out.write_text(text)
        print(f"wrote {out}", file=sys.stderr)
    if as_json:
        print(json.dumps(measured.to_dict(), indent=1))
    elif out is None:
        print(text, end="")
