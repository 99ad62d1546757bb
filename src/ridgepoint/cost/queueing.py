"""Open arrivals on the step law: how many requests run at once, and how long a newcomer waits, with percentiles.

The timetable: a step leaves every interval; a request that just missed one waits at most one interval to board and one to
arrive, so two intervals in the worst case, one and a half on average. On top, prompts queue for prefill like customers of an M/G/1
server whose service is a prompt's cost to the engine. Near saturation the waiting-time formulas say anything one likes, so the
answer there is a refusal that names what is full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import max_sequences
from ridgepoint.cost.serving import price_serving, serving_amounts
from ridgepoint.cost.workload import Workload
from ridgepoint.errors import ConfigError, PlanError

SATURATION = 0.90  # past this share of the prefill capacity a mean wait is ten services and its percentiles are guesses


def worst_wait_s(interval_s: float) -> float:
    """Just missed one step, and the answer comes with the end of the next: two intervals."""
    return 2.0 * interval_s


def mean_wait_s(interval_s: float) -> float:
    """Half an interval to board on average, one to arrive."""
    return 1.5 * interval_s


def mg1_wait_s(utilisation: float, service_s: float, service_cv2: float) -> float:
    """Pollaczek-Khinchine mean wait of Poisson arrivals. PlanError at or past `SATURATION`."""
    if utilisation >= SATURATION:
        raise PlanError(
            f"saturated: prompts would keep {utilisation:.0%} of the engine busy, and waits are not predictable past {SATURATION:.0%}",
            hint="add replicas, lower the arrival rate, or raise the prefix-hit rate",
        )
    return utilisation / (1.0 - utilisation) * service_s * (1.0 + service_cv2) / 2.0


@dataclass(frozen=True)
class OpenLoop:
    """Steady state under Poisson arrivals. Waits are estimates; `ttft_percentile_s` is exponential in the tail, as M/G/1's is."""

    running: float
    utilisation: float
    estimate_tpot_s: float
    own_s: float
    queue_mean_s: float
    interval_s: float

    @property
    def estimate_ttft_mean_s(self) -> float:
        return self.own_s + self.queue_mean_s

    def ttft_percentile_s(self, percentile: float) -> float:
        if not 0 < percentile < 100:
            raise ConfigError(f"a percentile lies between 0 and 100, got {percentile:g}")
        tail = 1.0 - percentile / 100.0
        if tail >= self.utilisation or self.queue_mean_s == 0.0:
            return self.own_s
        # P(wait > t) = rho exp(-t / scale), with the scale that gives the mean.
        scale = self.queue_mean_s / self.utilisation
        return self.own_s + scale * math.log(self.utilisation / tail)


def open_loop(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    workload: Workload,
    calibration: Calibration,
    *,
    requests_per_s: float,
    interval_s: float | None = None,
    service_cv2: float = 1.0,
) -> OpenLoop:
    """One instance under `requests_per_s`. Running requests follow Little's law on the step law's own TPOT.

    With `interval_s` the engine keeps a timetable: steps leave no oftener, and TPOT is at least the interval.
    """
    if not requests_per_s > 0:
        raise ConfigError(f"requests_per_s must be positive, got {requests_per_s:g}")
    context = workload.input_tokens + 0.5 * workload.decoded_tokens
    seats = float(max_sequences(spec, precision, layout, hardware, context=context, step_tokens=1.0))
    if seats < 1:
        raise PlanError(
            "the model does not fit with one sequence", hint="more chips, narrower weights or a shorter context"
        )
    batches = np.unique(np.round(np.geomspace(1, max(seats, 2.0), 96)))
    cost = price_serving(
        serving_amounts(spec, hardware, layout, precision, workload.loop(batches), routing_skew=calibration.routing_skew, tiles=calibration.tiles),
        hardware, calibration,
    )  # fmt: skip
    decode = np.broadcast_to(cost.decode.estimate_s, batches.shape) / workload.tokens_per_step
    if interval_s is not None:
        decode = np.maximum(decode, interval_s / workload.tokens_per_step)
    pause = np.maximum(np.broadcast_to(cost.mixed.estimate_s - cost.decode.estimate_s, batches.shape), 0.0)
    together = np.minimum(np.asarray(layout.dp_attention, float), batches)
    share = requests_per_s * pause / together
    tpot = decode / np.maximum(1.0 - share, 1e-9)
    wanted = requests_per_s * workload.decoded_tokens * tpot
    stable = (wanted <= batches) & (share < SATURATION)
    if not stable.any():
        if (share >= SATURATION).all() or float(share.min()) >= SATURATION:
            mg1_wait_s(float(share.min()), 1.0, service_cv2)
        raise PlanError(
            f"saturated: {requests_per_s:g} requests/s need {float(wanted.min()):.0f} sequences in flight and "
            f"memory or speed allows {seats:.0f}",
            hint="add replicas, narrow the KV cache, or relax the interval",
        )
    at = int(np.argmax(stable))
    utilisation, service = float(share[at]), float(pause[at] / together[at])
    step_s = float(decode[at] * workload.tokens_per_step)
    board_s = mean_wait_s(interval_s) if interval_s is not None else calibration.boarding_steps * step_s
    own = float(np.broadcast_to(cost.mixed.estimate_s, batches.shape)[at]) + board_s + calibration.request_overhead_s
    return OpenLoop(
        running=float(wanted[at]), utilisation=utilisation, estimate_tpot_s=float(tpot[at]), own_s=own,
        queue_mean_s=mg1_wait_s(utilisation, service, service_cv2), interval_s=interval_s or step_s,
    )  # fmt: skip
