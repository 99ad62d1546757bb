"""`ridgepoint explain-kernels`: which implementation each operator takes on this machine, and why."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("explain-kernels", epilog="Example: ridgepoint explain-kernels --json")(explain_kernels)


def explain_kernels(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    device: Annotated[str, typer.Option(help="Device type: cpu or cuda.")] = "cpu",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure this machine's roofs (about a second).")
    ] = False,
) -> None:
    """Say which kernels run here: the native library with its ISA and threads (or why it is absent), and each operator's path."""
    from ridgepoint.kernels import dispatch, native

    report: dict[str, object] = {"native": native.available(), "reason": native.load_error()}
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
    if as_json:
        print(json.dumps(report, indent=1))
        return
    for key, value in report.items():
        if key != "ops" and value is not None:
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    print("\n".join(dispatch.explain_ops(device)))
