"""What software reaches of the peaks: the few measured efficiencies and overheads, with where they came from.

Never a fact about a chip (those are `spec_`) and never fitted to a case: one set per engine family and hardware
generation at most. `uncertainty` is the log-scale residual left after fitting, from which the 80 % interval is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fractions of peak and seconds of overhead. An efficiency of 1 and an overhead of 0 is the bare roofline.

    `matmul_efficiency` and `attention_efficiency` are of dense FLOP/s, `memory_efficiency` (weights) and `kv_efficiency` of
    bandwidth, `kernel_overhead_s` is paid per launched kernel, `collective_overhead_s` per exchange. `overlap_power` shapes the smooth maximum of compute and memory time of one kernel (high: perfect overlap).
    """

    name: str
    provenance: str
    memory_efficiency: float = 1.0
    matmul_efficiency: float = 1.0
    attention_efficiency: float = 1.0
    kv_efficiency: float = 1.0
    unpack_efficiency: float = 1.0
    link_efficiency: float = 1.0
    overlap_power: float = 8.0
    step_overhead_s: float = 0.0
    kernel_overhead_s: float = 0.0
    collective_overhead_s: float = 0.0
    hop_latency_s: float = 0.0
    sequence_overhead_s: float = 0.0
    eager_kernel_s: float = 0.0
    request_overhead_s: float = 0.0
    prefill_first_frac: float = 0.0
    routing_skew: float = 1.0
    uncertainty: float = 0.0
    ttft_uncertainty: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "memory_efficiency",
            "matmul_efficiency",
            "attention_efficiency",
            "kv_efficiency",
            "link_efficiency",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"calibration {name} must be a fraction of peak in (0, 1], got {getattr(self, name):g}"
                )
        for name in (
            "step_overhead_s", "kernel_overhead_s", "collective_overhead_s", "hop_latency_s", "sequence_overhead_s", "eager_kernel_s",
            "request_overhead_s", "uncertainty", "ttft_uncertainty",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ConfigError(f"calibration {name} must not be negative, got {getattr(self, name):g}")

    def adjusted(self, **changes: float) -> Calibration:
        return replace(self, **changes)  # type: ignore[arg-type]


ROOFLINE = Calibration(name="roofline", provenance="spec_ peaks, no overheads: a floor, not a forecast")

# Typical of a serving engine on datacentre GPUs, before the fit against the measured tables.
SERVING = Calibration(
    name="serving-2025",
    provenance="estimate_: typical figures, unfitted",
    memory_efficiency=0.80,
    matmul_efficiency=0.65,
    attention_efficiency=0.45,
    kv_efficiency=0.70,
    link_efficiency=0.70,
    overlap_power=4.0,
    step_overhead_s=1.0e-3,
    kernel_overhead_s=3.5e-6,
    collective_overhead_s=8e-6,
    hop_latency_s=10e-6,
    sequence_overhead_s=10e-6,
    routing_skew=2.0,
    uncertainty=0.25,
)
