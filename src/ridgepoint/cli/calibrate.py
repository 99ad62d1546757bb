"""`ridgepoint calibrate`: measure this machine into a hardware file that `plan` and `serve` read like any other."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgepoint.cli.output_file import output_file, write_output
from ridgepoint.errors import ConfigError
from ridgepoint.units import si

if TYPE_CHECKING:
    from ridgepoint.cost.machine import MachineMeasure


SCHEMA = "ridgepoint.calibrate/1"


def register(app: typer.Typer) -> None:
    app.command(
        "calibrate", short_help="Measure this machine, and the engine on it.", epilog="Example: ridgepoint calibrate ./checkpoint --out this-machine.toml"
    )(calibrate)  # fmt: skip


def calibrate(
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder or hub id whose steps to time as well; none: the machine alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the hardware file here instead of stdout.", callback=output_file)
    ] = None,
    name: Annotated[str, typer.Option(help="The hardware's id in the file.")] = "this-machine",
    seconds: Annotated[float, typer.Option(help="Time budget of each of the dozen measurements.")] = 0.3,
    steps: Annotated[int, typer.Option(help="Steps of MODEL the constants are fitted to.")] = 12,
    weight_format: Annotated[
        str | None, typer.Option(help="How the CPU kernels keep MODEL's matrices: bf16, int8, int4-32, ...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=f"Print JSON (schema {SCHEMA}).")] = False,
) -> None:
    """Measure FLOP/s by type and size, bandwidth by memory level and step overhead; with MODEL, also time steps of the
    engine and fit the step law's constants to them. Writes all of it with its provenance and how far repeats lie apart; a machine
    that is too busy to be measured is said to be, not refused."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(f"--name must be lower-case letters, digits and dashes, got {name!r}")
    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds must lie in (0, 60], got {seconds:g}")
    from ridgepoint.catalog.hardware import accelerator_from_table
    from ridgepoint.cost.machine import measure_machine

    measured = measure_machine(name, budget_s=seconds, progress=lambda what: _tell(f"measuring {what}"))
    text = measured.to_toml()
    _tell_rates(measured)
    if measured.unsteady:
        _tell(f"warning: {measured.unsteady} (hint: measure again when nothing else runs)")
    result = measured.to_dict()
    chip = accelerator_from_table(name, tomllib.loads(text)[name])  # the file must pass the catalogue's own gate
    if model is not None:
        from ridgepoint.engine.calibrate import calibrate_engine
        from ridgepoint.engine.options import EngineOptions
        from ridgepoint.engine.source import find_model

        source = find_model(model)
        options = EngineOptions(model=str(source.folder), weight_format=weight_format)
        fitted = calibrate_engine(options, chip, points=steps, announce=_tell)
        text += fitted.to_toml(name, f"measure_: ridgepoint calibrate {source.name}, {fitted.summary}, {measured.date}")
        result["engine"] = fitted.to_dict()
        _tell(fitted.summary)
    if out is not None:
        write_output(out, text)
        _tell(f"wrote {out}")
    if as_json:
        print(json.dumps({"schema": SCHEMA, **result}, indent=1))
    elif out is None:
        print(text, end="")


def _tell_rates(measured: MachineMeasure) -> None:
    for kind, by_size in measured.measure_flops_per_s.items():
        best = max(by_size, key=lambda size: by_size[size])
        _tell(f"{kind}: {si(by_size[best], 'FLOP/s')} at {best}")
    for size, rate in measured.measure_bytes_per_s.items():
        _tell(f"{si(float(size), 'B')}: {si(rate, 'B/s')}")


def _tell(line: Any) -> None:
    print(line, file=sys.stderr)
