"""Joules of a step: static watts x seconds + pJ per byte by memory level + pJ per FLOP by type.

Chips differ mostly by process generation, so the dynamic constants come by launch year; static power is a fraction of the
board's TDP. These are estimates (`estimate_`), calibrated where a table of measured power exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.arrays import Num, smallest


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


DEFAULT_ENERGY = EnergyModel(
    name="gpu-4nm",
    provenance="estimate_: HBM 4-5 pJ/bit plus on-die transport, tensor-core 0.3-0.5 pJ/flop at bf16; unfitted",
    static_frac=0.30,
    memory_j_per_byte=60e-12,
    sram_j_per_byte=5e-12,
    link_j_per_byte=30e-12,
    bf16_j_per_flop=0.45e-12,
)


def step_joules(
    hardware: Accelerator,
    model: EnergyModel,
    *,
    chips: Num,
    seconds: Num,
    flops_by_type: dict[str, Num],
    memory_bytes: Num,
    link_bytes: Num,
    sram: bool,
) -> Num:
    """Whole-instance joules; amounts are whole-instance too. Average power is capped at the boards' limit."""
    tdp_w = hardware.need("spec_tdp_w", "energy")
    per_byte = model.sram_j_per_byte if sram else model.memory_j_per_byte
    dynamic = memory_bytes * per_byte + link_bytes * model.link_j_per_byte
    for kind, flops in flops_by_type.items():
        dynamic = dynamic + flops * model.flop_joules(kind)
    total = chips * tdp_w * model.static_frac * seconds + dynamic
    return smallest(total, chips * tdp_w * model.cap_frac * seconds)
