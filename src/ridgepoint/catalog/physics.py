"""What an operation, a byte moved and a hop cost: constants of physics and of today's parts, each with its source."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from ridgepoint.errors import CatalogError


@dataclass(frozen=True, kw_only=True)
class Constant:
    """`low` to `high` in `unit` (pJ/FLOP, pJ/B or s)."""

    id: str
    what: str
    low: float
    high: float
    unit: str
    source: str


_UNITS = {"pj_per_flop": "pJ/FLOP", "pj_per_byte": "pJ/B", "seconds": "s"}


@lru_cache(maxsize=1)
def constants() -> dict[str, Constant]:
    data = tomllib.loads(resources.files("ridgepoint.catalog").joinpath("data/physics.toml").read_text())
    found = {}
    for row in [*data["energy"], *data["latency"]]:
        (key,) = [name for name in _UNITS if name in row]
        low, high = row[key]
        if not 0 < low <= high:
            raise CatalogError(f"physics.toml: {row['id']} needs 0 < low <= high, got {low:g} to {high:g}")
        found[row["id"]] = Constant(
            id=row["id"], what=row["what"], low=low, high=high, unit=_UNITS[key], source=row["source"]
        )
    return found
