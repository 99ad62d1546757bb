"""SI inside, prefixes only when printing: formatters that turn base units into text a person reads."""

from __future__ import annotations

import math

GIB = 1 << 30
MIB = 1 << 20

_SI_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """`si(3.35e12, "B/s") == "3.35 TB/s"`: `value` in base units with the SI prefix that leaves 1 to 999."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    exponent = min(18, max(-15, 3 * math.floor(math.log10(abs(value)) / 3)))
    scaled = value / 10.0**exponent
    if float(f"{abs(scaled):.{digits}g}") >= 1000 and exponent < 18:
        exponent += 3
        scaled = value / 10.0**exponent
    number = f"{scaled:.{digits}g}" if abs(scaled) < 100 else f"{scaled:.0f}"
    return f"{number} {_SI_PREFIXES[exponent]}{unit}".rstrip()


def seconds(value_s: float) -> str:
    """`seconds(0.0123) == "12.3 ms"`; from a minute on, minutes and hours."""
    if value_s < 60:
        return si(value_s, "s")
    if value_s < 7200:
        return f"{value_s / 60:.1f} min"
    return f"{value_s / 3600:.1f} h"


def usd(value: float) -> str:
    """Dollars with enough digits to compare prices per million tokens: `$0.0123`, `$4.20`, `$87,072`."""
    if value != 0 and abs(value) < 1:
        return f"${value:.3g}"
    return f"${value:,.2f}" if abs(value) < 1000 else f"${value:,.0f}"
