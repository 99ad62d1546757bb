"""What software reaches of the peaks: the few measured efficiencies and overheads, with where they came from.

Never a fact about a chip (those are `spec_`) and never fitted to a case: one set per engine family and hardware
generation at most. `uncertainty` is the log-scale residual left after fitting, from which the 80 % interval is made.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

from ridgepoint.cost.arrays import Num, all_true
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fractions of peak and seconds of overhead. An efficiency of 1 and an overhead of 0 is the bare roofline.

    `matmul_efficiency` and `attention_efficiency` are of dense FLOP/s, `memory_efficiency` (weights) and `kv_efficiency` of
    bandwidth, `narrow_efficiency` times `matmul_efficiency` where operands are 8 bits or fewer. `unpack_flops` are fp32
    operations of vector units for each weight that is widened before it is multiplied, once a tile of rows. `kernel_overhead_s` is paid per launched
    kernel, `collective_overhead_s` per round of an exchange (`step._rounds`), `hop_latency_s` where one
    leaves the scale-up domain. `overlap_power` shapes the smooth maximum of compute and
    memory time of one kernel (high: perfect overlap). `prompt_overhead_s` is host time for which a boarding prompt holds up every decoder, beside
    its computation. Constants may be arrays of alternatives while a fit tries them.
    """

    name: str
    provenance: str
    memory_efficiency: float = 1.0
    matmul_efficiency: float = 1.0
    grouped_efficiency: float = 1.0
    attention_efficiency: float = 1.0
    kv_efficiency: float = 1.0
    unpack_flops: float = 0.0
    narrow_efficiency: float = 1.0
    link_efficiency: float = 1.0
    direct_bytes_per_s: float = math.inf  # of sums small enough for kernels of the engine's own
    overlap_power: float = 8.0
    step_overhead_s: float = 0.0
    kernel_overhead_s: float = 0.0
    collective_overhead_s: float = 0.0
    hop_latency_s: float = 0.0
    sequence_overhead_s: float = 0.0
    eager_kernel_s: float = 0.0
    request_overhead_s: float = 0.0
    prompt_overhead_s: float = 0.0
    prefill_host_kernel_s: float = 0.0
    boarding_steps: float = 0.5
    prefill_slowdown: float = 1.0
    turnover_scale: float = 1.0
    bunching_frac: float = 1.0
    prefill_first_frac: float = 0.0
    routing_skew: float = 1.0
    small_tile_rows: float = 8.0  # rows a kernel of one expert computes at least (1: a matrix-vector kernel)
    large_tile_rows: float = 128.0  # and at most in one tile, half of which is wasted on average
    uncertainty: float = 0.0
    ttft_uncertainty: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "memory_efficiency",
            "matmul_efficiency",
            "attention_efficiency",
            "kv_efficiency",
            "link_efficiency",
            "narrow_efficiency",
        ):
            if not all_true(getattr(self, name) > 0) or not all_true(getattr(self, name) <= 1):
                raise ConfigError(
                    f"calibration {name} must be a fraction of peak in (0, 1], got {getattr(self, name)!r}"
                )
        if not all_true(self.direct_bytes_per_s > 0):
            raise ConfigError(f"calibration direct_bytes_per_s must be positive, got {self.direct_bytes_per_s!r}")
        for name in (
            "unpack_flops", "step_overhead_s", "kernel_overhead_s", "collective_overhead_s", "hop_latency_s", "sequence_overhead_s", "eager_kernel_s",
            "request_overhead_s", "prompt_overhead_s", "prefill_host_kernel_s", "boarding_steps", "prefill_slowdown", "turnover_scale", "bunching_frac",
            "prefill_first_frac", "uncertainty", "ttft_uncertainty",
        ):  # fmt: skip
            if not all_true(getattr(self, name) >= 0):
                raise ConfigError(f"calibration {name} must not be negative, got {getattr(self, name)!r}")

    @property
    def tiles(self) -> tuple[float, float]:
        return self.small_tile_rows, self.large_tile_rows

    def adjusted(self, **changes: Num) -> Calibration:
        return replace(self, **changes)


ROOFLINE = Calibration(name="roofline", provenance="spec_ peaks, no overheads: a floor, not a forecast")

# Where a fit starts and what its prior is centred on: round figures for datacentre GPU kernels, written before any fit to a table.
BEFORE_FIT = Calibration(
    name="before-fit",
    provenance="estimate_: published efficiencies of serving kernels on datacentre GPUs, unfitted",
    memory_efficiency=0.80,
    matmul_efficiency=0.60,
    grouped_efficiency=0.55,
    attention_efficiency=0.40,
    kv_efficiency=0.70,
    unpack_flops=8.0,  # about four operations: mask, shift, scale, each in the place of a multiplication and an addition
    narrow_efficiency=0.80,
    link_efficiency=0.80,
    direct_bytes_per_s=1.35e11,  # 0.3 of an H100's wire
    overlap_power=4.0,
    step_overhead_s=5e-4,
    kernel_overhead_s=3e-6,
    collective_overhead_s=4e-6,
    hop_latency_s=10e-6,
    sequence_overhead_s=10e-6,
    eager_kernel_s=10e-6,
    request_overhead_s=0.005,
    prompt_overhead_s=0.003,
    prefill_host_kernel_s=1e-5,
    boarding_steps=1.5,
    prefill_slowdown=1.1,
    turnover_scale=1.0,
    bunching_frac=0.5,
    prefill_first_frac=0.1,
    routing_skew=1.0,  # measured distinct experts of DeepSeek-V3 and Qwen3 follow uniform routing within 3 %
    uncertainty=0.25,
    ttft_uncertainty=0.45,
)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Calibration]:
    data = tomllib.loads(resources.files("ridgepoint.cost").joinpath("calibrations.toml").read_text())
    return {name: Calibration(name=name, **table) for name, table in data.items()}


def calibrations() -> dict[str, Calibration]:
    """Every calibration by name: `roofline`, `before-fit`, the fitted `serving` and `serving-<engine>` (middles), and `tuned` (the fastest tenth)."""
    return {"roofline": ROOFLINE, "before-fit": BEFORE_FIT, **_shipped()}


def calibration(name: str) -> Calibration:
    known = calibrations()
    if name not in known:
        raise ConfigError(f"unknown calibration {name!r}", hint="allowed: " + ", ".join(known))
    return known[name]


SERVING = calibration("serving")
