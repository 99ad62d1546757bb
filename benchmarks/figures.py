"""Figures of a prediction against a measurement: relative errors, interval coverage, rank correlation. Numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

Z80 = 1.2815515655446004  # +-Z80 standard deviations hold 80 %


def error_summary(log_error: Vector) -> dict[str, float]:
    """Of log(predicted / measured): median, 90th percentile and bias of the relative error."""
    relative = np.exp(log_error) - 1
    return {
        "rows": len(relative), "median_frac": float(np.median(np.abs(relative))),
        "p90_frac": float(np.percentile(np.abs(relative), 90)), "bias_frac": float(np.median(relative)),
    }  # fmt: skip


def spread_of(log_error: Vector) -> float:
    """Scale whose +-Z80 holds 80 % of the residuals, whatever their shape."""
    return float(np.percentile(np.abs(log_error), 80) / Z80)


def coverage(log_error: Vector, sigma: Vector) -> float:
    """Share of measurements inside the 80 % interval."""
    return float(np.mean(np.abs(log_error) <= Z80 * sigma))


def ranks(values: Vector) -> Vector:
    """Ranks from 0, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1.0
    return np.asarray((last - 0.5 * (counts - 1))[inverse])


def rank_correlation(pairs: Iterable[tuple[Vector, Vector]]) -> float:
    """Median over groups of Spearman's correlation; groups of fewer than four, or without variation, say nothing."""
    found = []
    for measured, predicted in pairs:
        if len(measured) < 4:
            continue
        a, b = ranks(measured), ranks(predicted)
        if a.std() and b.std():
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.median(found))
