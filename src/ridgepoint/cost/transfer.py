"""A calibration carried to the chip it is wanted for: as fitted, with a wider interval, or replaced by what was measured there.

The fitted constants speak of datacentre GPUs of recent years. A chip unlike those keeps them with less certainty; a machine
without launches and links gets constants of its own; and a machine on which steps were measured (`ridgepoint calibrate MODEL`)
carries its constants in its hardware file, which then stand above all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.calibration import Calibration, calibration
from ridgepoint.cost.step import Z80
from ridgepoint.errors import ConfigError

MEASURED_SINCE = 2022  # launch year of the oldest accelerator in the measurements the calibrations were fitted to
UNMEASURED_LOG_SD = 0.2  # how much less is known of a chip whose kind was not among them (an estimate)


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """An overhead nobody has published for this kind of chip: an estimate between ends that should hold it with 80 % probability."""

    middle_s: float
    low_s: float
    high_s: float
    why: str


COMPILED_OVERHEADS = {
    "step_overhead_s": Overhead(middle_s=1e-4, low_s=5e-5, high_s=2e-4, why="the host starts one compiled program a step"),
    "kernel_overhead_s": Overhead(middle_s=5e-7, low_s=2.5e-7, high_s=1e-6, why="the start of an operation, a guess"),
    "collective_overhead_s": Overhead(
        middle_s=5e-7, low_s=2.5e-7, high_s=1e-6, why="a hop of TPU links is published as about a microsecond; half of one a doubling makes three among 64 chips"
    ),
    "hop_latency_s": Overhead(middle_s=2e-6, low_s=1e-6, high_s=4e-6, why="two such hops, out of a slice or between stages"),
}  # fmt: skip


# A CPU widens codes to bytes, not to floats. In the kernels here that costs a quarter of the products of a tile of six rows in bytes (4-bit
# codes in groups of 32 stay at 0.80 of the peak): of 12 operations at four times fp32's pace.
UNPACK_BYTES_FLOPS = 0.75
# A compiled program converts a register of codes in one operation, and scales the sums instead of the weights (an estimate).
UNPACK_COMPILED_FLOPS = 2.0

ENGINE_CONSTANTS = tuple(item.name for item in fields(Calibration) if item.name not in ("name", "provenance"))


def calibration_for(chip: Accelerator, engine: str) -> Calibration:
    """The constants of `engine` on `chip`. `roofline` stays bare everywhere."""
    base = calibration(engine)
    if engine == "roofline":
        return base
    if chip.kind in ("cpu", "custom") and chip.spec_scaleup_bytes_per_s is None:
        base = _single_machine(chip, base)
    elif chip.kind in ("tpu", "sram"):
        base = _compiled_step(chip, base)
    elif not (chip.vendor == "NVIDIA" and chip.kind == "gpu" and (chip.launch_year or 0) >= MEASURED_SINCE):
        base = replace(
            base,
            provenance=f"{base.provenance}; {chip.id} is unlike the measured chips, so the interval is wider",
            uncertainty=float((base.uncertainty**2 + UNMEASURED_LOG_SD**2) ** 0.5),
            ttft_uncertainty=float((base.ttft_uncertainty**2 + UNMEASURED_LOG_SD**2) ** 0.5),
        )
    return _as_measured(chip, base) if chip.measure_engine else base


def _as_measured(chip: Accelerator, base: Calibration) -> Calibration:
    for name in chip.measure_engine:
        if name not in ENGINE_CONSTANTS:
            raise ConfigError(
                f"{chip.id}: the step law has no constant {name!r}", hint="known: " + ", ".join(ENGINE_CONSTANTS)
            )
    source = next(
        (text for name, text in chip.sources.items() if name.startswith("engine.") and text), "measure_: stated"
    )
    return replace(base, name=f"{chip.id} engine", provenance=source, **chip.measure_engine)


def _compiled_step(chip: Accelerator, base: Calibration) -> Calibration:
    """Chips that run a whole step as one compiled program launch no kernels, and their collectives are part of it: what is left
    of the overheads is the start of each operation and the hops of its links. All of them are estimates, and where a step is small they are
    most of it, so the interval is as wide as if they were all of it and erred together."""
    spread = max(
        math.log(end / overhead.middle_s if end > overhead.middle_s else overhead.middle_s / end) / Z80
        for overhead in COMPILED_OVERHEADS.values()
        for end in (overhead.low_s, overhead.high_s)
    )
    stated = "; ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {item.middle_s * 1e6:g} us ({item.low_s * 1e6:g} to {item.high_s * 1e6:g}: {item.why})"
        for name, item in COMPILED_OVERHEADS.items()
    )
    return replace(
        base,
        name="compiled-step",
        provenance=f"estimate_: {chip.id} runs a step as one compiled program, whose overheads nobody has published: {stated}; "
        f"efficiencies of {base.name}, measured on GPUs",
        **{name: item.middle_s for name, item in COMPILED_OVERHEADS.items()},
        unpack_flops=UNPACK_COMPILED_FLOPS,
        eager_kernel_s=COMPILED_OVERHEADS["kernel_overhead_s"].middle_s, prefill_host_kernel_s=0.0, prompt_overhead_s=0.0,
        prefill_slowdown=1.2,
        uncertainty=math.hypot(base.uncertainty, spread),
        ttft_uncertainty=math.hypot(base.ttft_uncertainty, spread),
    )  # fmt: skip


def _single_machine(chip: Accelerator, base: Calibration) -> Calibration:
    """Function calls instead of kernel launches, no network, no separate host; efficiencies measured where the file has them."""

    def reached(measured: float | None, peak: float | None, otherwise: float) -> float:
        return min(1.0, measured / peak) if measured and peak else otherwise

    kind = next(iter(chip.measure_flops_per_s), None)
    flops = reached(chip.measure_flops_per_s.get(kind), chip.spec_flops_per_s.get(kind), 0.75) if kind else 0.75
    call_s = chip.measure_step_overhead_s or 4e-6
    memory = reached(chip.measure_memory_bytes_per_s, chip.spec_memory_bytes_per_s, 0.85)
    return replace(
        base,
        name="single-machine",
        provenance=f"estimate_: one machine without launches or links{', efficiencies measured' if kind else ', efficiencies typical'}",
        memory_efficiency=memory, kv_efficiency=memory, matmul_efficiency=flops, grouped_efficiency=0.7 * flops, attention_efficiency=0.4 * flops, narrow_efficiency=1.0,
        step_overhead_s=5e-4, kernel_overhead_s=call_s, eager_kernel_s=call_s, prefill_host_kernel_s=0.0, prompt_overhead_s=0.0, prefill_slowdown=1.0, boarding_steps=0.5, request_overhead_s=5e-3,
        small_tile_rows=1.0, large_tile_rows=6.0, unpack_flops=UNPACK_BYTES_FLOPS,
        uncertainty=0.35, ttft_uncertainty=0.45,
    )  # fmt: skip
