"""Joules of a step: static watts x seconds + pJ per byte by memory level + pJ per FLOP by type.

Chips differ mostly by process generation, so the dynamic constants come by launch year; static power is a fraction of the
board's TDP. These are estimates (`estimate_`), calibrated where a table of measured power exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.arrays import Num, smallest

if TYPE_CHECKING:
    from ridgepoint.cost.serving import ServingCost

ENERGY_TYPES = {"fp32": 2.0, "bf16": 1.0, "fp16": 1.0, "fp8": 0.5, "int8": 0.5, "fp4": 0.25}


@dataclass(frozen=True, kw_only=True)
class EnergyModel:
    """`static_frac` of TDP burns whatever happens; a busy chip never exceeds `cap_frac` of TDP (it throttles)."""

    name: str
    provenance: str
    static_frac: float
    memory_j_per_byte: float
    sram_j_per_byte: float
    link_j_per_byte: float
    bf16_j_per_flop: float
    cap_frac: float = 1.0

    def flop_joules(self, kind: str) -> float:
        """Multiplier area goes with the square of the mantissa, data movement with its width: about half per halving."""
        return (
            self.bf16_j_per_flop * {"fp32": 2.0, "bf16": 1.0, "fp16": 1.0, "fp8": 0.5, "int8": 0.5, "fp4": 0.25}[kind]
        )


# Where a fit starts: HBM at 4 to 5 pJ a bit and transport on the die, tensor cores at 0.3 to 0.5 pJ a FLOP.
ENERGY_BEFORE_FIT = EnergyModel(
    name="gpu-before-fit",
    provenance="estimate_: HBM 4-5 pJ/bit plus on-die transport, tensor-core 0.3-0.5 pJ/flop at bf16; unfitted",
    static_frac=0.30,
    memory_j_per_byte=60e-12,
    sram_j_per_byte=5e-12,
    link_j_per_byte=30e-12,
    bf16_j_per_flop=0.45e-12,
)

# Static is the power of a board that serves, above its idle: clocks, fans and leakage at working voltage.
DEFAULT_ENERGY = EnergyModel(
    name="gpu-serving",
    provenance="measure_: fitted to 382 points of serving power on H100 and B200 (benchmarks/power_vs_measured.py); "
    "sram and link terms are estimate_",
    static_frac=0.546,
    memory_j_per_byte=42e-12,
    sram_j_per_byte=5e-12,
    link_j_per_byte=30e-12,
    bf16_j_per_flop=0.84e-12,
)


def step_joules(
    hardware: Accelerator,
    model: EnergyModel,
    *,
    chips: Num,
    seconds: Num,
    flops_by_type: dict[str, Num],
    memory_bytes: Num,
    sram_bytes: Num,
    link_bytes: Num,
) -> Num:
    """Whole-instance joules; amounts are whole-instance too. Average power is capped at the boards' limit."""
    tdp_w = hardware.need("spec_tdp_w", "energy")
    moved = memory_bytes * model.memory_j_per_byte + sram_bytes * model.sram_j_per_byte
    dynamic = moved + link_bytes * model.link_j_per_byte
    for kind, flops in flops_by_type.items():
        dynamic = dynamic + flops * model.flop_joules(kind)
    total = chips * tdp_w * model.static_frac * seconds + dynamic
    return smallest(total, chips * tdp_w * model.cap_frac * seconds)


def mean_power_w(
    hardware: Accelerator,
    model: EnergyModel,
    *,
    bf16_flops: Num,
    memory_bytes: Num,
    link_bytes: Num,
    seconds: Num,
    chips: Num,
) -> Num:
    """Watts of `chips` chips that do these amounts in `seconds`; never above the boards' limit."""
    tdp_w = hardware.need("spec_tdp_w", "power")
    dynamic = (
        memory_bytes * model.memory_j_per_byte + link_bytes * model.link_j_per_byte + bf16_flops * model.bf16_j_per_flop
    ) / seconds
    return smallest(chips * tdp_w * model.static_frac + dynamic, chips * tdp_w * model.cap_frac)


def fit_energy(
    costs: Sequence[ServingCost], seconds: NDArray[np.float64], watts: NDArray[np.float64], start: EnergyModel,
    weight: NDArray[np.float64] | None = None,
) -> EnergyModel:  # fmt: skip
    """Static share and joules per byte and per FLOP from measured power, as a robust non-negative fit of log watts.

    `seconds` are the measured intervals the amounts took. Few steps of multiplicative coordinate descent: four constants,
    a smooth objective, no library.
    """
    amounts = [cost.busy_amounts() for cost in costs]
    tdp = np.array(
        [float(a["chips"]) * c.decode.hardware.need("spec_tdp_w", "power") for a, c in zip(amounts, costs, strict=True)]
    )
    memory = np.array([float(a["memory_bytes"]) for a in amounts]) / seconds
    flops = np.array([float(a["bf16_flops"]) for a in amounts]) / seconds
    links = np.array([float(a["link_bytes"]) for a in amounts]) / seconds
    per = np.ones(len(costs)) if weight is None else weight

    def loss(x: NDArray[np.float64]) -> float:
        predicted = np.minimum(
            tdp * x[0] + memory * x[1] + flops * x[2] + links * start.link_j_per_byte, tdp * start.cap_frac
        )
        prior = float(np.sum(np.log(x / first) ** 2)) * 0.5
        return float(np.sum(per * np.sqrt(1 + (np.log(predicted / watts) / 0.1) ** 2))) + prior

    first = np.array([start.static_frac, start.memory_j_per_byte, start.bf16_j_per_flop])
    best = first.copy()
    step = 0.4
    while step > 0.002:
        moved = False
        for index in range(3):
            for factor in (1 + step, 1 / (1 + step)):
                trial = best.copy()
                trial[index] *= factor
                if loss(trial) < loss(best):
                    best, moved = trial, True
        if not moved:
            step /= 2
    return replace(
        start, name=start.name + "-fitted", provenance=f"measure_: fitted to {len(costs)} points of measured power",
        static_frac=float(best[0]), memory_j_per_byte=float(best[1]), bf16_j_per_flop=float(best[2]),
    )  # fmt: skip
