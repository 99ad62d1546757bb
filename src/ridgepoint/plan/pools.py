"""What hardware may be used for what: a pool is one kind of chip, how many there are, and the formats it would serve in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgepoint.catalog.hardware import Accelerator, accelerator
from ridgepoint.cost.calibration import Calibration, calibration
from ridgepoint.cost.formats import Precision
from ridgepoint.errors import ConfigError

ROLES = ("any", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """`count` None is as many as the plan wants. `role` any may prefill, decode, or do both together."""

    chip: Accelerator
    precision_name: str
    precision: Precision
    calibration: Calibration
    count: int | None = None
    role: str = "any"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"unknown role {self.role!r} of pool {self.chip.id}", hint="one of " + ", ".join(ROLES))
        if self.count is not None and self.count < 1:
            raise ConfigError(f"pool {self.chip.id}: count must be at least 1, got {self.count}")

    @property
    def usd_per_hour(self) -> tuple[float, float, float]:
        """Rent (low, middle, high); an unknown rent is an error that names it."""
        low, high = self.chip.usd_per_hour_low, self.chip.usd_per_hour_high
        middle = self.chip.need("usd_per_hour", "a cost in dollars")
        return (low if low is not None else middle), middle, (high if high is not None else middle)

    def describe(self) -> str:
        many = f"{self.count} x " if self.count else ""
        return f"{many}{self.chip.id} ({self.precision_name})"


def parse_pool(
    text: str, precision_name: str, role: str = "any", *, rents: dict[str, float] | None = None, engine: str = "serving"
) -> Pool:
    """`NAME` or `NAME:COUNT`, NAME being a catalogue id or a .toml file; rent overrides by the name as written; `engine` names a
    calibration of `cost`."""
    name, _, count = text.rpartition(":") if ":" in text else (text, "", "")
    chip = accelerator(name)
    rent = (rents or {}).get(name, (rents or {}).get(chip.id))
    if rent is not None:
        chip = chip.with_rent(rent)
    try:
        number = int(count) if count else None
    except ValueError:
        raise ConfigError(
            f"hardware {text!r}: {count!r} is not a number of chips", hint="write NAME or NAME:COUNT"
        ) from None
    return Pool(
        chip=chip, precision_name=precision_name, precision=Precision.named(precision_name), calibration=calibration_for(chip, engine),
        count=number, role=role,
    )  # fmt: skip


MEASURED_SINCE = 2022  # launch year of the oldest accelerator in the measurements the calibrations were fitted to
UNMEASURED_LOG_SD = 0.2  # how much less is known of a chip whose kind was not among them (an estimate)


def calibration_for(chip: Accelerator, engine: str) -> Calibration:
    """The engine's calibration, made right for the chip: CPUs launch no kernels and keep what was measured of them; chips unlike
    those of the fit get a wider interval, and the provenance says so."""
    base = calibration(engine)
    if engine == "roofline":
        return base
    if chip.kind in ("cpu", "custom") and chip.spec_scaleup_bytes_per_s is None:
        return _single_machine(chip, base)
    if chip.vendor == "NVIDIA" and chip.kind == "gpu" and (chip.launch_year or 0) >= MEASURED_SINCE:
        return base
    return replace(
        base,
        provenance=f"{base.provenance}; {chip.id} is unlike the measured chips, so the interval is wider",
        uncertainty=float((base.uncertainty**2 + UNMEASURED_LOG_SD**2) ** 0.5),
        ttft_uncertainty=float((base.ttft_uncertainty**2 + UNMEASURED_LOG_SD**2) ** 0.5),
    )


def _single_machine(chip: Accelerator, base: Calibration) -> Calibration:
    """Function calls instead of kernel launches, no network, no separate host; efficiencies measured where the file has them."""

    def reached(measured: float | None, peak: float | None, otherwise: float) -> float:
        return min(1.0, measured / peak) if measured and peak else otherwise

    kind = next(iter(chip.measure_flops_per_s), None)
    flops = reached(chip.measure_flops_per_s.get(kind), chip.spec_flops_per_s.get(kind), 0.75) if kind else 0.75
    memory = reached(chip.measure_memory_bytes_per_s, chip.spec_memory_bytes_per_s, 0.85)
    return replace(
        base,
        name="single-machine",
        provenance=f"estimate_: one machine without launches or links{', efficiencies measured' if kind else ', efficiencies typical'}",
        memory_efficiency=memory, kv_efficiency=memory, matmul_efficiency=flops, grouped_efficiency=0.7 * flops, attention_efficiency=0.4 * flops,
        step_overhead_s=chip.measure_step_overhead_s if chip.measure_step_overhead_s is not None else 1e-3,
        kernel_overhead_s=8e-6, eager_kernel_s=8e-6, prefill_host_kernel_s=0.0, prefill_slowdown=1.0, boarding_steps=0.5, request_overhead_s=5e-3,
        small_tile_rows=1.0,
        uncertainty=0.35, ttft_uncertainty=0.45,
    )  # fmt: skip


def default_precision(model: str, hardware: str) -> str:
    """The recipe a plan takes when none is stated: gpt-oss as released (4-bit experts), int8 on CPUs, else fp8 weights where the
    chip multiplies fp8 and the same bytes, widened for arithmetic, where it does not."""
    chip = accelerator(hardware)
    if model.lower().startswith("gpt-oss"):
        return "mxfp4"
    return "int8" if chip.kind == "cpu" else "fp8"
