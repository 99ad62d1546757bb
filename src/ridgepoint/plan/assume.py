"""Intervals from assumptions: name what is not known, give it a range, and let the answer be as wide as the ignorance.

Every inference here is a formula over assumptions, each a range read log-uniformly. The ranges are sampled at the points
of a fixed low-discrepancy sequence, so the same question always gives the same interval, and the share each assumption
has in the answer's width is reported: it says which fact is worth finding out. Knows nothing of prices or hardware.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.errors import ConfigError

Samples = NDArray[np.float64]

NUM_SAMPLES = 4096
LEVEL_FRAC = 0.8  # the interval holds this share of the samples


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """`low` to `high`, in the unit said; equal ends are a stated fact. `why` is the argument or the source."""

    name: str
    low: float
    high: float
    unit: str
    why: str

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < math.inf):
            raise ConfigError(
                f"assumption {self.name}: needs 0 < low <= high, got {self.low:g} to {self.high:g}",
                hint="a range is written LOW:HIGH, a known value alone",
            )


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One inferred figure: the middle and the ends of its interval, the formula, and what the width is made of.

    `bound` says what kind of statement it is: "interval", or "upper" when the argument only limits from above.
    """

    name: str
    unit: str
    middle: float
    low: float
    high: float
    bound: str
    formula: str
    reasoning: str
    assumptions: tuple[Assumption, ...]
    width_shares: tuple[tuple[str, float], ...]

    provenance = "estimate"


def sample(assumptions: Sequence[Assumption]) -> dict[str, Samples]:
    """Points of the R-sequence (a golden-ratio lattice in as many dimensions as there are assumptions), log-uniform."""
    size = len(assumptions)
    root = 2.0
    for _ in range(40):  # fixed point of x^(d+1) = x + 1
        root = (1 + root) ** (1 / (size + 1))
    steps = (1 / root) ** np.arange(1, size + 1)
    points = (0.5 + np.arange(1, NUM_SAMPLES + 1)[:, None] * steps) % 1.0
    drawn: dict[str, Samples] = {}
    for column, item in enumerate(assumptions):
        drawn[item.name] = np.exp(np.log(item.low) + points[:, column] * (np.log(item.high) - np.log(item.low)))
    return drawn


def infer(
    name: str,
    unit: str,
    formula: str,
    reasoning: str,
    assumptions: Sequence[Assumption],
    function: Callable[..., Samples],
    *,
    bound: str = "interval",
) -> Inference:
    """Evaluate `function(**samples)` over the assumptions; `width_shares` is each one's share of the log-variance."""
    drawn = sample(assumptions)
    values = np.asarray(function(**drawn), dtype=np.float64) + np.zeros(NUM_SAMPLES)
    tail = (1 - LEVEL_FRAC) / 2
    low, middle, high = (float(x) for x in np.quantile(values, (tail, 0.5, 1 - tail)))
    return Inference(
        name=name,
        unit=unit,
        middle=middle,
        low=low,
        high=high,
        bound=bound,
        formula=formula,
        reasoning=reasoning,
        assumptions=tuple(assumptions),
        width_shares=_shares(values, drawn),
    )


def _shares(values: Samples, drawn: dict[str, Samples]) -> tuple[tuple[str, float], ...]:
    wide = {name: np.log(x) for name, x in drawn.items() if x.min() < x.max()}
    if not wide or not (values > 0).all() or values.min() == values.max():
        return ()
    log_values = np.log(values)
    raw = {name: float(np.corrcoef(log_values, x)[0, 1] ** 2) for name, x in wide.items()}
    total = sum(raw.values())
    return tuple(sorted(((name, share / total) for name, share in raw.items()), key=lambda pair: -pair[1]))


def parse_range(name: str, text: str, unit: str) -> Assumption:
    """`0.3:0.6` or `0.5` from the command line."""
    ends = text.split(":")
    try:
        low, high = float(ends[0]), float(ends[-1])
    except ValueError:
        raise ConfigError(f"assumption {name}: {text!r} is not a number or LOW:HIGH") from None
    if len(ends) > 2:
        raise ConfigError(f"assumption {name}: {text!r} has more than two ends", hint="write LOW:HIGH")
    return Assumption(name=name, low=low, high=high, unit=unit, why="stated by the user")
