"""What hardware may be used for what: a pool is one kind of chip, how many there are, and the formats it would serve in."""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator, accelerator
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.errors import ConfigError

ROLES = ("any", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """`count` None is as many as the plan wants. `share_units`: others use, and pay for, the idle chips of a node or rack. `role` any may prefill, decode, or do both together."""

    chip: Accelerator
    precision_name: str
    precision: Precision
    calibration: Calibration
    count: int | None = None
    role: str = "any"
    share_units: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"unknown role {self.role!r} of pool {self.chip.id}", hint="one of " + ", ".join(ROLES))
        if self.count is not None and self.count < 1:
            raise ConfigError(f"pool {self.chip.id}: count must be at least 1, got {self.count}")

    @property
    def usd_per_hour(self) -> tuple[float, float, float]:
        """Rent (low, middle, high); an unknown rent is an error that names it."""
        low, high = self.chip.rent_range("a cost in dollars")
        return low, self.chip.need("usd_per_hour", "a cost in dollars"), high

    @property
    def unit(self) -> int:
        """Chips paid for together; one where they are shared or nobody has said how the chip is sold."""
        return 1 if self.share_units else self.chip.unit_chips or 1

    def describe(self) -> str:
        many = f"{self.count} x " if self.count else ""
        return f"{many}{self.chip.id} ({self.precision_name})"


def parse_pool(
    text: str,
    precision_name: str,
    role: str = "any",
    *,
    rents: dict[str, float] | None = None,
    engine: str = "serving",
    share_units: bool = False,
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
        count=number, role=role, share_units=share_units,
    )  # fmt: skip


def default_precision(model: str, hardware: str) -> str:
    """The recipe a plan takes when none is stated: gpt-oss as released (4-bit experts), int8 on CPUs, else fp8 weights where the
    chip multiplies fp8 and the same bytes, widened for arithmetic, where it does not."""
    chip = accelerator(hardware)
    if model.lower().startswith("gpt-oss"):
        return "mxfp4"
    return "int8" if chip.kind == "cpu" else "fp8"
