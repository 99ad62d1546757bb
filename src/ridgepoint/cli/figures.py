"""How figures and intervals are printed by the planner's commands. Formatting only."""

from __future__ import annotations

from ridgepoint.units import seconds, si, usd


def one(value: float, unit: str) -> str:
    if value == float("inf"):
        return "for ever" if unit == "s" else "unbounded"
    if unit == "s":
        return duration(value)
    if unit == "USD":
        return usd(value)
    if unit in ("x", "ratio", "tokens", "chips", "FLOP/B", "B/B"):
        number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return f"{number} {unit}" if unit not in ("ratio",) else number
    return si(value, unit)


def figure(low: float, high: float, unit: str) -> str:
    """`low to high unit`, the unit once where both ends share it; one number when they print alike."""
    first, last = one(low, unit), one(high, unit)
    if first == last:
        return first
    number, _, suffix = first.rpartition(" ")
    if number and last.endswith(" " + suffix):
        first = number
    return f"{first} to {last}"


def duration(value_s: float) -> str:
    if value_s < 7200 or value_s == 0:
        return seconds(value_s)
    return f"{value_s / 3600:.1f} h" if value_s < 48 * 3600 else f"{value_s / 86400:.3g} days"
