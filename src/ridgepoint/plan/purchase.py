"""What is paid for: accelerators are bought and rented by the board, node or rack, and an idle chip of one costs as much as a busy one.

A unit is as many chips as a catalogue entry says are had together (`unit_chips`). Instances smaller than a unit lie side by side in
it and never across two; larger ones take whole units. Where a pool's count is stated, no more than it is paid for. Sharing units
with others makes every chip its own unit. Arrays throughout; knows no price.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def units_of(instances: Array, chips: Array, unit: int) -> Array:
    """Units that `instances` instances of `chips` chips take."""
    side_by_side = np.floor(unit / chips)
    return np.where(
        chips <= unit,
        np.ceil(instances / np.maximum(side_by_side, 1.0) - 1e-9),
        instances * np.ceil(chips / unit - 1e-9),
    )


def paid_chips(instances: Array, chips: Array, unit: int, count: int | None, *, filled: bool = False) -> Array:
    """Chips to pay for: whole units, but never more than there are, unless the plan itself needs more. `filled`: no load is stated,
    so as many instances as fit share a unit, and each pays its part of the gap they leave."""
    if filled:
        alone = np.ceil(chips / unit - 1e-9) * unit
        paid = instances * np.where(chips <= unit, unit / np.maximum(np.floor(unit / chips), 1.0), alone)
        return _capped(paid, instances * chips, count)
    return _capped(units_of(instances, chips, unit) * unit, instances * chips, count)


def paid_by_two(
    first: tuple[Array, Array], second: tuple[Array, Array], unit: int, count: int | None
) -> tuple[Array, Array]:
    """Chips to pay for when two kinds of instances (instances, chips of each) share the units of one pool, split by the chips each
    uses. Whichever of the two is laid out first, instances of the other fill the gaps it leaves."""
    (n, chips), (m, other) = first, second
    units = np.minimum(_units_with_gaps(n, chips, m, other, unit), _units_with_gaps(m, other, n, chips, unit))
    used = n * chips + m * other
    paid = _capped(units * unit, used, count)
    return paid * (n * chips) / used, paid * (m * other) / used


def _capped(paid: Array, used: Array, count: int | None) -> Array:
    return paid if count is None else np.maximum(np.minimum(paid, float(count)), used)


def _units_with_gaps(n: Array, chips: Array, m: Array, other: Array, unit: int) -> Array:
    """Units of n instances, and of what m instances of another size need beyond the gaps left in them."""
    units = units_of(n, chips, unit)
    per_unit = np.maximum(np.floor(unit / chips), 1.0)
    full_gap = np.where(chips <= unit, unit - per_unit * chips, np.ceil(chips / unit) * unit - chips)
    full = np.where(chips <= unit, np.floor(n / per_unit + 1e-9), n)
    last_gap = np.where((chips <= unit) & (units > full), unit - (n - full * per_unit) * chips, 0.0)
    hosted = full * np.floor(full_gap / other) + np.floor(last_gap / other)
    return units + units_of(np.maximum(m - hosted, 0.0), other, unit)
