"""Waiting for prefill, as arrays: `cost.queueing`'s law (Poisson arrivals, prompts of unlike lengths) over a whole table at once.

From the refusal threshold on, the wait depends on the last percent of load and on luck; such points are refused, not priced.
"""

from __future__ import annotations

import numpy as np

from ridgepoint.cost.arrays import Num
from ridgepoint.cost.queueing import SATURATION

MAX_UTILISATION = SATURATION
SERVICE_CV2 = 1.0  # squared coefficient of variation of prompt lengths: as spread as an exponential (an estimate)


def mean_wait(utilisation: Num, service_s: Num) -> Num:
    """Pollaczek-Khinchine: rho / (1 - rho) x S (1 + cv2) / 2; infinite from the refusal threshold on."""
    refused = utilisation >= MAX_UTILISATION
    rho = np.where(refused, 0.0, utilisation)
    return np.where(refused, np.inf, rho / (1.0 - rho) * service_s * (1.0 + SERVICE_CV2) / 2.0)


def wait_quantile(utilisation: Num, service_s: Num, quantile: float) -> Num:
    """From the exponential tail with the mean matched: P(W > t) = rho exp(-rho t / mean)."""
    mean = mean_wait(utilisation, service_s)
    rho = np.clip(utilisation, 1e-9, MAX_UTILISATION)
    exceed = np.maximum(np.log(rho / (1.0 - quantile)), 0.0)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(mean), np.inf, mean / rho * exceed)
