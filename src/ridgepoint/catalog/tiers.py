"""Memory tiers that can keep KV between uses: what they hold, how fast they return it, what a byte costs to keep.

HBM's figures are the accelerator's own (its rent spread over its memory: a held byte keeps a batch slot from somebody
else); the tiers below it are catalogue data. Capacities are one chip's share. Knows nothing of models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.errors import CatalogError


@dataclass(frozen=True, kw_only=True)
class Tier:
    """`spec_drain_s` = capacity / bandwidth is the tier's own time scale: what is reused sooner belongs higher up."""

    id: str
    name: str
    capacity_bytes: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float
    usd_per_byte_hour_low: float
    usd_per_byte_hour_high: float
    usd_per_byte_written: float
    source: str

    def __post_init__(self) -> None:
        for name in ("capacity_bytes", "read_bytes_per_s", "write_bytes_per_s", "usd_per_byte_hour_low"):
            if not getattr(self, name) > 0:
                raise CatalogError(f"tier {self.id}: {name} must be positive, got {getattr(self, name):g}")
        if self.usd_per_byte_hour_high < self.usd_per_byte_hour_low:
            raise CatalogError(f"tier {self.id}: usd_per_byte_hour_high is below usd_per_byte_hour_low")

    @property
    def drain_s(self) -> float:
        return self.capacity_bytes / self.read_bytes_per_s


@lru_cache(maxsize=1)
def lower_tiers() -> tuple[Tier, ...]:
    """Host memory, flash and disk, fastest first."""
    data = tomllib.loads(resources.files("ridgepoint.catalog").joinpath("data/tiers.toml").read_text())
    return tuple(_tier(ident, table) for ident, table in data.items())


def _tier(ident: str, table: dict[str, float | str]) -> Tier:
    known = set(Tier.__dataclass_fields__) - {"id"} | {"date"}
    unknown = sorted(set(table) - known)
    if unknown:
        raise CatalogError(f"tier {ident}: unknown key {unknown[0]!r}", hint="allowed: " + ", ".join(sorted(known)))
    text = {key: str(table[key]) for key in ("name", "source")}
    numbers = {key: float(value) for key, value in table.items() if key not in ("name", "source", "date")}
    return Tier(id=ident, **text, **numbers)  # type: ignore[arg-type]


def hbm_tier(chip: Accelerator) -> Tier:
    """The chip's own memory as a tier. Raises when its capacity, bandwidth or rent is unknown."""
    purpose = "the price of a byte held in its memory"
    capacity = chip.need("spec_memory_bytes", purpose)
    bandwidth = chip.need("spec_memory_bytes_per_s", purpose)
    low, high = chip.rent_range(purpose)
    return Tier(
        id="hbm",
        name=f"memory of {chip.name}",
        capacity_bytes=capacity,
        read_bytes_per_s=bandwidth,
        write_bytes_per_s=bandwidth,
        latency_s=0.0,
        usd_per_byte_hour_low=low / capacity,
        usd_per_byte_hour_high=high / capacity,
        usd_per_byte_written=0.0,
        source=f"catalogue rent of {chip.id} ({low:g}-{high:g} USD/h) over its {capacity / 1e9:.0f} GB",
    )


def tiers_of(chip: Accelerator) -> tuple[Tier, ...]:
    """Every tier a chip can reach, fastest first; host memory is limited by this chip's own host link where known."""
    lower = []
    for tier in lower_tiers():
        link = chip.spec_hostlink_bytes_per_s
        if link is not None:
            read, write = min(tier.read_bytes_per_s, link), min(tier.write_bytes_per_s, link)
            tier = Tier(**{**tier.__dict__, "read_bytes_per_s": read, "write_bytes_per_s": write})
        lower.append(tier)
    return (hbm_tier(chip), *lower)
