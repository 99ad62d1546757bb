"""Few-shot calibration: which points of a deployment to measure, and what five of them teach.

The points asked for are those whose predictions the remaining uncertainty moves most (greedy, with the information of the
points already chosen taken into account), so they spread over what binds: small batch for overheads, large for bandwidth, long
prompts for compute. The adjustment is the MAP estimate around the calibration one starts from, plus one factor common to the
deployment (the engine's own, which no physical constant names).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.fitting import Group, encode, fit, jacobian
from ridgepoint.errors import ConfigError

Vector = NDArray[np.float64]
Predict = Callable[[Calibration], Vector]

CONSTANT_SD = 0.5  # how far one deployment's constants lie from the shared ones, encoded units
FACTOR_SD = 0.20  # and its common factor, log scale
NOISE = 0.05  # repeatability within a deployment, layouts and versions included


@dataclass(frozen=True)
class Adjusted:
    calibration: Calibration
    log_factor: float

    def log_predict(self, predict: Predict) -> Vector:
        return predict(self.calibration) + self.log_factor


def _design(predict: Predict, start: Calibration, names: Sequence[str]) -> NDArray[np.float64]:
    z = np.array([encode(name, getattr(start, name)) for name in names])
    empty = np.zeros(0)
    _, slope = jacobian(Group(predict, empty), start, names, z)
    return np.concatenate([slope * CONSTANT_SD, np.full((len(slope), 1), FACTOR_SD)], axis=1)


def choose_points(predict: Predict, start: Calibration, names: Sequence[str], *, count: int = 5) -> NDArray[np.int64]:
    """Indices of the `count` candidate points to measure. `predict` gives log seconds of all candidates."""
    design = _design(predict, start, names)
    if not 1 <= count <= len(design):
        raise ConfigError(f"cannot choose {count} of {len(design)} candidate points")
    posterior = np.eye(design.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        # Variance of every prediction left after measuring candidate i, summed over all: choose the i that leaves least.
        projected = design @ posterior
        variance = np.einsum("ij,ij->i", projected, design)
        shared = projected @ design.T
        gain = (shared**2).sum(axis=0) / (variance + NOISE**2)
        gain[chosen] = -1.0
        index = int(gain.argmax())
        chosen.append(index)
        row = projected[index]
        posterior = posterior - np.outer(row, row) / (variance[index] + NOISE**2)
    return np.array(sorted(chosen))


def adjust(
    predict: Predict, start: Calibration, names: Sequence[str], points: NDArray[np.int64], log_measured: Vector
) -> Adjusted:
    """Constants and common factor after `log_measured` at `points` of the candidates."""
    factor = 0.0
    calibration = start
    for _ in range(3):  # the factor is linear and the constants nearly so: alternate
        group = Group(lambda c: predict(c)[points], log_measured - factor)
        calibration = fit([group], start, names, prior_sd=CONSTANT_SD, noise=NOISE).calibration()
        residual = log_measured - predict(calibration)[points]
        weight = 1.0 / np.sqrt(1.0 + (residual / NOISE) ** 2)
        shrink = weight.sum() / (weight.sum() + (NOISE / FACTOR_SD) ** 2)
        factor = float(shrink * (weight * residual).sum() / weight.sum())
    return Adjusted(calibration, factor)
