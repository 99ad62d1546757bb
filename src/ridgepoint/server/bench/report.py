"""Outcomes to figures: latencies with percentiles, throughput, goodput under limits, errors counted.

    ttft  first text - the moment the request was due (open loop: waiting to be sent counts)
    tpot  (last text - first text) / (output tokens - 1), one figure per request
    itl   gaps between successive texts, pooled over requests
    e2e   last byte - the moment the request was due

Failed requests are counted and excluded from every latency; goodput counts those that met every limit given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ridgepoint.server.bench.drive import Outcome

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Goals:
    """Latency limits a request must keep to count as good; None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        pairs = ((self.ttft_s, ttft_s(outcome)), (self.tpot_s, tpot_s(outcome)), (self.e2e_s, e2e_s(outcome)))
        return outcome.error is None and all(limit is None or (value or 0) <= limit for limit, value in pairs)

    @property
    def any(self) -> bool:
        return any(limit is not None for limit in (self.ttft_s, self.tpot_s, self.e2e_s))


def ttft_s(outcome: Outcome) -> float | None:
    return outcome.text_times_s[0] - outcome.due_s if outcome.text_times_s else None


def tpot_s(outcome: Outcome) -> float | None:
    times = outcome.text_times_s
    return (times[-1] - times[0]) / (outcome.output_tokens - 1) if times and outcome.output_tokens > 1 else None


def e2e_s(outcome: Outcome) -> float:
    return outcome.ended_s - outcome.due_s


def summarise(outcomes: Sequence[Outcome], goals: Goals) -> dict[str, Any]:
    """Plain data, SI units. A latency nobody measured is absent (null), never zero."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    span_s = max((outcome.ended_s for outcome in outcomes), default=0.0) - min(
        (outcome.sent_s for outcome in outcomes), default=0.0
    )
    gaps = [later - sooner for one in good for sooner, later in pairwise(one.text_times_s)]
    num_in = sum(outcome.prompt_tokens for outcome in good)
    num_out = sum(outcome.output_tokens for outcome in good)

    def rate(amount: float) -> float | None:
        return amount / span_s if span_s > 0 else None

    return {
        "num_requests": len(outcomes),
        "num_completed": len(good),
        "num_errors": len(outcomes) - len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None).most_common()),
        "duration_s": span_s,
        "prompt_tokens": num_in,
        "cached_tokens": sum(outcome.cached_tokens for outcome in good),
        "output_tokens": num_out,
        "requests_per_s": rate(len(good)),
        "output_tokens_per_s": rate(num_out),
        "total_tokens_per_s": rate(num_in + num_out),
        "goodput_requests_per_s": rate(sum(goals.met_by(one) for one in outcomes)) if goals.any else None,
        "goodput_frac": sum(goals.met_by(one) for one in outcomes) / len(outcomes) if goals.any and outcomes else None,
        "ttft_s": distribution([value for one in good if (value := ttft_s(one)) is not None]),
        "tpot_s": distribution([value for one in good if (value := tpot_s(one)) is not None]),
        "itl_s": distribution(gaps),
        "e2e_s": distribution([e2e_s(one) for one in good]),
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, extremes and percentiles (linear between ranks)."""
    if not values:
        return None
    ordered = sorted(values)
    found = {"mean": sum(ordered) / len(ordered), "min": ordered[0], "max": ordered[-1]}
    return found | {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}


def percentile(ordered: Sequence[float], percent: float) -> float:
    rank = (len(ordered) - 1) * percent / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
