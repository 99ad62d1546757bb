"""Fit calibration constants to measurements: a few parameters, a prior, robust residuals, numpy only.

Constants are moved in a space where they cannot leave their domain (efficiencies by logit, overheads by log). Every fit is a
maximum a posteriori estimate: residuals in log time against a prior in that space, so that five points bend a calibration
only as far as they carry evidence, and constants no point touches stay where they were. Groups of measurements may carry
labels (engine, hardware generation); each label then has its own small offset, pooled towards zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ridgepoint.cost.arrays import Num
from ridgepoint.cost.calibration import Calibration
from ridgepoint.errors import ConfigError

Vector = NDArray[np.float64]

FRACTIONS = (
    "memory_efficiency", "matmul_efficiency", "grouped_efficiency", "attention_efficiency", "kv_efficiency",
    "narrow_efficiency", "link_efficiency", "prefill_first_frac",
)  # fmt: skip


def encode(name: str, value: float) -> float:
    if name in FRACTIONS:
        clipped = min(max(value, 1e-4), 1 - 1e-4)
        return float(np.log(clipped / (1 - clipped)))
    return float(np.log(max(value, 1e-9)))


def decode(name: str, coordinate: Num) -> Num:
    """Of a coordinate, or of an array of them."""
    return 1 / (1 + np.exp(-coordinate)) if name in FRACTIONS else np.exp(coordinate)


def with_coordinates(calibration: Calibration, names: Sequence[str], coordinates: Vector) -> Calibration:
    """`coordinates` has one row per constant: a number, or an array of alternatives, which the constants then are."""
    decoded = (decode(name, z) for name, z in zip(names, coordinates, strict=True))
    values = (value if np.ndim(value) else float(value) for value in decoded)
    return calibration.adjusted(**dict(zip(names, values, strict=True)))


@dataclass(frozen=True)
class Group:
    """Measurements that share labels. `predict(calibration)` gives log seconds, one per measurement; where it is `batched`, constants may be
    columns of alternatives, and it gives one row for each."""

    predict: Callable[[Calibration], Vector]
    log_measured: Vector
    labels: tuple[str, ...] = ()
    weight: float = 1.0
    batched: bool = False


@dataclass
class Fit:
    """Fitted coordinates of the shared constants and of each label's offset, with the posterior covariance of the former."""

    base: Calibration
    names: tuple[str, ...]
    shared: Vector
    offsets: dict[str, Vector] = field(default_factory=dict)
    covariance: Any = None

    def coordinates(self, labels: Sequence[str] = ()) -> Vector:
        total = self.shared.copy()
        for label in labels:
            if label in self.offsets:
                total = total + self.offsets[label]
        return total

    def calibration(self, labels: Sequence[str] = ()) -> Calibration:
        """The constants for these labels; a label never seen adds nothing."""
        return with_coordinates(self.base, self.names, self.coordinates(labels))


def jacobian(
    group: Group, base: Calibration, names: Sequence[str], coordinates: Vector
) -> tuple[Vector, NDArray[np.float64]]:
    """(log predictions, their derivatives by coordinate) by forward differences."""
    step = 1e-3
    if group.batched:
        moved = coordinates + step * np.concatenate([np.zeros((1, len(names))), np.eye(len(names))])
        found = group.predict(with_coordinates(base, names, moved.T[:, :, None]))
        return found[0], (found[1:] - found[0]).T / step
    at = group.predict(with_coordinates(base, names, coordinates))
    columns = []
    for index in range(len(names)):
        moved = coordinates.copy()
        moved[index] += step
        columns.append((group.predict(with_coordinates(base, names, moved)) - at) / step)
    return at, np.stack(columns, axis=-1)


def fit(
    groups: Sequence[Group],
    base: Calibration,
    names: Sequence[str],
    *,
    prior_sd: float | Vector = 1.0,
    offset_sd: float | Vector = 0.3,
    noise: float = 0.15,
    quantile: float = 0.5,
    iterations: int = 25,
) -> Fit:
    """Robust MAP fit by damped Gauss-Newton. `noise` is the log-scale spread beyond which a residual counts less.

    `base` is both the start and the prior's centre; `prior_sd` is in encoded units (1.0 is a factor e in an overhead). With
    `quantile` q the residuals of the two sides weigh q to 1 - q, so that about a share q of measurements lies below the fit.
    """
    if not groups:
        raise ConfigError("nothing to fit: no measurements given")
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile must lie in (0, 1), got {quantile:g}")
    labels = sorted({label for group in groups for label in group.labels})
    k = len(names)
    centre = np.array([encode(name, getattr(base, name)) for name in names])
    size = k * (1 + len(labels))
    place = {label: k * (1 + index) for index, label in enumerate(labels)}
    deviation = np.concatenate(
        [
            np.broadcast_to(np.asarray(prior_sd, float), (k,)),
            np.tile(np.broadcast_to(np.asarray(offset_sd, float), (k,)), len(labels)),
        ]
    )
    state = np.zeros(size)
    damping = 1e-2

    def coordinates_of(vector: Vector, group: Group) -> Vector:
        z = centre + vector[:k]
        for label in group.labels:
            z = z + vector[place[label] : place[label] + k]
        return z

    def side(residual: Vector) -> Vector:
        return 2.0 * np.where(residual > 0, 1.0 - quantile, quantile)

    def objective(vector: Vector) -> float:
        total = 0.5 * float(np.sum((vector / deviation) ** 2))
        for group in groups:
            residual = (
                group.predict(with_coordinates(base, names, coordinates_of(vector, group))) - group.log_measured
            ) / noise
            total += group.weight * float(np.sum(side(residual) * (np.sqrt(1 + residual**2) - 1)))
        return total

    best = objective(state)
    hessian = np.eye(size)
    for _ in range(iterations):
        gradient = state / deviation**2
        hessian = np.diag(1 / deviation**2)
        for group in groups:
            at, slope = jacobian(group, base, names, coordinates_of(state, group))
            residual = (at - group.log_measured) / noise
            weight = group.weight * side(residual) / np.sqrt(1 + residual**2) / noise**2
            blocks = [slice(0, k)] + [slice(place[label], place[label] + k) for label in group.labels]
            local_gradient = slope.T @ (weight * residual * noise)
            local_hessian = slope.T @ (weight[:, None] * slope)
            for rows in blocks:
                gradient[rows] += local_gradient
                for columns in blocks:
                    hessian[rows, columns] += local_hessian
        improved = False
        for _ in range(6):
            move = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            move = np.clip(move, -1.5, 1.5)
            value = objective(state + move)
            if value < best:
                improved, damping = True, damping / 4
                converged = best - value < 1e-5 * max(best, 1.0)
                state, best = state + move, value
                break
            damping *= 6
        if not improved or converged:
            break
    covariance = np.linalg.inv(hessian)[:k, :k]
    return Fit(
        base=base, names=tuple(names), shared=centre + state[:k],
        offsets={label: state[start : start + k] for label, start in place.items()}, covariance=covariance,
    )  # fmt: skip
