"""Steps that leave at fixed intervals: what a user of a timetable sees, and which intervals are worth offering.

Free-running steps follow one another, so that a prompt on board delays everyone and a newcomer may wait for two of the longest. On a
timetable a step with its chunk of prompt leaves every interval, whether the chunk is full or not: time per token is the interval
exactly, and who just missed a step has boarded and arrived within two. That steadiness is bought with the slack of every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.cost.queueing import mean_wait_s
from ridgepoint.errors import ConfigError
from ridgepoint.plan.queue import MAX_UTILISATION, mean_wait, wait_quantile
from ridgepoint.plan.workload import Goal, Workload

Array = NDArray[np.float64]

# A quarter apart or less: a step waits for the next departure, and finer timetables tell nothing apart that the estimate does.
INTERVALS_MS = (
    0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 1000,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How an engine's steps follow one another, and what its users then see; arrays of one shape.

    `interval_s` is the longest time between two departures, `busy_s` the mean time a step keeps the chips busy, both of one step;
    `utilisation` is the prompts that come over those that could be taken.
    """

    interval_s: Array
    busy_s: Array
    tpot_s: Array
    ttft_s: Array
    ttft_p90_s: Array
    utilisation: Array


def intervals_worth_searching(workload: Workload, goal: Goal) -> Array:
    """The grid, and the very intervals the goal's limits allow."""
    exact = [goal.tpot_s * workload.tokens_per_step] if goal.tpot_s is not None else []
    exact += [goal.wait_s / 2.0] if goal.wait_s is not None else []
    return np.unique(np.array([*(ms / 1e3 for ms in INTERVALS_MS), *exact]))


def checked_intervals(stated: tuple[float, ...]) -> Array:
    for interval in stated:
        if not 0 < interval < float("inf"):
            raise ConfigError(f"a step interval must be positive, got {interval * 1e3:g} ms")
    return np.unique(np.array(stated))


def next_departure(seconds: Array, intervals: Array) -> Array:
    """The least interval that holds a step; infinite where none does."""
    found = np.searchsorted(intervals, seconds * (1 - 1e-12))
    return np.append(intervals, np.inf)[found]


def on_timetable(
    *, decode_s: Array, mixed_s: Array, prompts_per_mixed: Array, steps_per_prompt: Array, overhead_s: Array, prompts_per_step: Array,
    intervals: Array, tokens_per_step: float,
) -> Pace:  # fmt: skip
    """Every departure has room for a decode step of the batch and one chunk on each rank. `prompts_per_step` board on average,
    `overhead_s` is what a request waits apart from steps."""
    interval = next_departure(mixed_s, intervals)
    rho = prompts_per_step / prompts_per_mixed
    bounded = np.where(rho < MAX_UTILISATION, rho, 0.0)
    finite = np.where(np.isfinite(interval), interval, 1.0)
    service = steps_per_prompt * finite
    ride = mean_wait_s(1.0) * finite + (steps_per_prompt - 1.0) * finite + overhead_s
    latest = ride + 0.4 * finite  # nine in ten board within nine tenths of an interval
    return Pace(
        interval_s=interval, busy_s=decode_s + np.minimum(rho, 1.0) * (mixed_s - decode_s), tpot_s=interval / tokens_per_step,
        ttft_s=ride + mean_wait(bounded, service), ttft_p90_s=latest + wait_quantile(bounded, service, 0.9),
        utilisation=np.where(np.isfinite(interval), rho, np.inf),
    )  # fmt: skip
