"""Waiting for a chunk of prefill: a queue with fixed service times and random arrivals (M/D/1), as arrays.

Beyond `MAX_UTILISATION` the wait depends on the last percent of load and on luck; such points are refused, not priced.
"""

from __future__ import annotations

import numpy as np

from ridgepoint.cost.arrays import Num

MAX_UTILISATION = 0.92


def mean_wait(utilisation: Num, service_s: Num) -> Num:
    """Pollaczek-Khinchine with constant service: rho S / (2 (1 - rho)); infinite from the refusal threshold on."""
    refused = utilisation >= MAX_UTILISATION
    rho = np.where(refused, 0.0, utilisation)
    return np.where(refused, np.inf, rho * service_s / (2.0 * (1.0 - rho)))


def wait_quantile(utilisation: Num, service_s: Num, quantile: float) -> Num:
    """From the exponential tail with the mean matched: P(W > t) = rho exp(-rho t / mean)."""
    mean = mean_wait(utilisation, service_s)
    rho = np.clip(utilisation, 1e-9, MAX_UTILISATION)
    exceed = np.maximum(np.log(rho / (1.0 - quantile)), 0.0)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(mean), np.inf, mean / rho * exceed)
