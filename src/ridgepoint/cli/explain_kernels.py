"""`ridgepoint explain-kernels`: which implementation each operator takes on this machine, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ridgepoint.errors import ConfigError

SCHEMA = "ridgepoint.explain-kernels/1"


def register(app: typer.Typer) -> None:
    app.command(
        "explain-kernels",
        short_help="Say which kernels run here.",
        epilog="Example: ridgepoint explain-kernels stdlib-moe",
    )(explain_kernels)


def explain_kernels(
    model: Annotated[
        str | None, typer.Argument(help="Also say what the weights of this checkpoint would run on; 'stdlib-moe' too.")
    ] = None,
    weight_format: Annotated[str | None, typer.Option(help="For MODEL: packed in this instead of as stored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=f"Print JSON (schema {SCHEMA}).")] = False,
    device: Annotated[str, typer.Option(help="Device type: cpu or cuda.")] = "cpu",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure this machine's roofs (about a second).")
    ] = False,
) -> None:
    """Say which kernels run here: the native library with its ISA and threads (or why it is absent), and each operator's path."""
    from ridgepoint.kernels import dispatch, native

    if device not in dispatch.ORDER:
        raise ConfigError(f"--device {device!r} is unknown; allowed: {', '.join(dispatch.ORDER)}")
    report: dict[str, object] = {"schema": SCHEMA, "native": native.available(), "reason": native.load_error()}
    if native.available():
        report |= {
            "library": str(native.library_path()),
            "isa": native.isa(),
            "supported_isas": native.supported_isas(),
            "threads": native.num_threads(),
        }
        if measure:
            report["measure_read_bytes_per_s"] = native.measure_read_bytes_per_s(1 << 29, 3)
            report["measure_bf16_flops_per_s"] = native.measure_peak_flops_per_s("bf16", 100)
    report["ops"] = dispatch.explain_ops(device)
    if weight_format is not None and model is None:
        raise ConfigError("--weight-format says how a MODEL is packed, and none was named")
    weights = [] if model is None else _weights(model, weight_format, device)
    if model is not None:
        report["weights"] = weights
    if as_json:
        print(json.dumps(report, indent=1))
        return
    for key, value in report.items():
        if key not in ("schema", "ops", "weights") and value is not None:
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    print("\n".join(dispatch.explain_ops(device)))
    for row in weights:
        print(f"{row['role']}: {row['matrices']} packed as {row['how']}, {row['kernel']}")


def _weights(model: str, weight_format: str | None, device: str) -> list[dict[str, Any]]:
    """By role of the matrix: the format it would be loaded in on `device`, and the kernel that takes it."""
    import torch

    from ridgepoint.engine.source import find_model
    from ridgepoint.kernels import dispatch, native
    from ridgepoint.models.checkpoint import open_checked
    from ridgepoint.models.load_packed import by_role, plan
    from ridgepoint.models.rooms import rooms_on

    rooms = rooms_on(torch.device(device))
    rows = by_role(plan(*open_checked(find_model(model).folder), torch.bfloat16, weight_format, rooms))
    for row in rows:
        op = "moe_experts" if row["role"].startswith("experts.") else "linear"
        if device != "cpu":
            row["kernel"] = dispatch.explain(op, device)
            continue
        row["kernel"] = (
            f"{op} native {native.isa()}" if native.available() else f"{op} in torch, multiplied out to bf16"
        )
    return rows
