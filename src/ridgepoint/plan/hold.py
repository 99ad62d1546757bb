"""A conversation pauses: keep its KV, where, for how long, or drop it and recompute?

Each way costs a + rate x hold: HBM pays only the rate (a held byte keeps a slot from somebody else), a lower tier pays to
write and, when the request comes back, to read, dropping pays the prefill again when it comes back. The cheapest way as the
pause grows is the lower envelope of these lines. Knows no engine; reuse is a probability, and a hold without one loses money.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.catalog.tiers import Tier
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_seq
from ridgepoint.cost.step import step_cost
from ridgepoint.errors import ConfigError

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Range:
    """Low and high end; the middle is geometric, or arithmetic where an end is zero."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high) if self.low > 0 else 0.5 * (self.low + self.high)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to bridge a pause. Dollars per sequence: `rate` per second held, `write` now, `resume` if it comes back."""

    id: str
    name: str
    estimate_rate_usd_per_s: Range
    estimate_write_usd: Range
    estimate_resume_usd: Range
    estimate_resume_s: float
    drain_s: float | None
    breakeven_vs_recompute_s: Range | None
    best_ttl_s: Range | None


@dataclass(frozen=True, kw_only=True)
class HoldPlan:
    """All ways and the cheapest one for each length of pause: (from seconds, way id), the first from 0."""

    context_tokens: int
    kv_bytes: float
    reuse_prob: float
    mean_pause_s: float | None
    recompute_flops_s: float
    ways: tuple[Way, ...]
    cheapest: tuple[tuple[float, str], ...]


def plan_hold(
    spec: ModelSpec,
    chip: Accelerator,
    layout: Layout,
    precision: Precision,
    calibration: Calibration,
    tiers: Sequence[Tier],
    *,
    context_tokens: int,
    reuse_prob: float,
    mean_pause_s: float | None = None,
    chunk_tokens: int = 8192,
) -> HoldPlan:
    """`reuse_prob`: that the request ever comes back. With `mean_pause_s` (exponential pauses) the best time-to-live per tier
    is where the chance of a return in the next second no longer pays for that second."""
    if not 0 <= reuse_prob <= 1:
        raise ConfigError(f"reuse probability must be between 0 and 1, got {reuse_prob:g}")
    if context_tokens < 1:
        raise ConfigError(f"context must be at least one token, got {context_tokens}")
    if mean_pause_s is not None and not mean_pause_s > 0:
        raise ConfigError(f"mean pause must be positive, got {mean_pause_s:g} s")
    kv_bytes = float(kv_bytes_per_seq(spec, float(context_tokens), precision.kv))
    recompute_s, recompute = _recompute(spec, chip, layout, precision, calibration, context_tokens, chunk_tokens)
    hbm_rate = _hold_rate(kv_bytes, tiers[0])
    chip_usd_per_s = Range(low=_rent(chip).low * layout.chips / HOUR_S, high=_rent(chip).high * layout.chips / HOUR_S)
    ways = []
    for tier in tiers:
        write, resume, resume_s = (Range(low=0.0, high=0.0), Range(low=0.0, high=0.0), 0.0)
        if tier.id != "hbm":
            bytes_per_chip = kv_bytes / (
                layout.tp * layout.pp
            )  # a sequence lies on one attention rank, not on all of them
            write_s = bytes_per_chip / tier.write_bytes_per_s + tier.latency_s
            resume_s = bytes_per_chip / tier.read_bytes_per_s + tier.latency_s
            wear = kv_bytes * tier.usd_per_byte_written
            write = Range(
                low=wear + write_s * hbm_rate.low, high=wear + write_s * hbm_rate.high
            )  # the copy runs beside compute
            # At best the read only reserves its slot; at worst the chips wait for it.
            resume = Range(low=resume_s * hbm_rate.low, high=resume_s * chip_usd_per_s.high)
        rate = _hold_rate(kv_bytes, tier)
        ways.append(
            Way(
                id=tier.id, name=tier.name, estimate_rate_usd_per_s=rate, estimate_write_usd=write, estimate_resume_usd=resume,
                estimate_resume_s=resume_s, drain_s=tier.drain_s,
                breakeven_vs_recompute_s=_breakeven(reuse_prob, recompute, resume, write, rate),
                best_ttl_s=_best_ttl(reuse_prob, mean_pause_s, recompute, resume, rate) if mean_pause_s else None,
            )
        )  # fmt: skip
    zero = Range(low=0.0, high=0.0)
    ways.append(
        Way(id="recompute", name="drop and recompute", estimate_rate_usd_per_s=zero, estimate_write_usd=zero,
            estimate_resume_usd=recompute, estimate_resume_s=recompute_s, drain_s=None, breakeven_vs_recompute_s=None, best_ttl_s=None)
    )  # fmt: skip
    return HoldPlan(
        context_tokens=context_tokens, kv_bytes=kv_bytes, reuse_prob=reuse_prob, mean_pause_s=mean_pause_s,
        recompute_flops_s=recompute_s, ways=tuple(ways), cheapest=_envelope(ways, reuse_prob),
    )  # fmt: skip


def _rent(chip: Accelerator) -> Range:
    low, high = chip.rent_range("hold times")
    return Range(low=low, high=high)


def _hold_rate(kv_bytes: float, tier: Tier) -> Range:
    return Range(
        low=kv_bytes * tier.usd_per_byte_hour_low / HOUR_S, high=kv_bytes * tier.usd_per_byte_hour_high / HOUR_S
    )


def _recompute(
    spec: ModelSpec,
    chip: Accelerator,
    layout: Layout,
    precision: Precision,
    calibration: Calibration,
    context: int,
    chunk: int,
) -> tuple[float, Range]:
    """(seconds, dollars) of prefilling the context again in chunks, every attention rank and stage having one such prompt."""
    low = middle = high = 0.0
    prompts = layout.dp_attention * layout.pp
    for start in range(0, context, chunk):
        new = min(chunk, context - start)
        step = step_cost(
            spec, chip, layout, precision, StepBatch.prefill(float(prompts), float(new), float(start)), calibration
        )
        low, middle, high = low + step.estimate_low_s, middle + step.estimate_s, high + step.estimate_high_s
    rent, share = _rent(chip), layout.chips / prompts
    return middle, Range(low=low * share * rent.low / HOUR_S, high=high * share * rent.high / HOUR_S)


def _breakeven(prob: float, recompute: Range, resume: Range, write: Range, rate: Range) -> Range:
    """Pause below which holding beats recomputing: (p (recompute - resume) - write) / rate; 0 where it never does.

    Rent raises both sides alike, so low goes with low; the ends of the resume cost are what is left of the interval."""
    ends = [
        (prob * (again - back) - put) / per_s
        for again, per_s, put in ((recompute.low, rate.low, write.low), (recompute.high, rate.high, write.high))
        for back in (min(resume.low, again), min(resume.high, again))
    ]
    return Range(low=max(0.0, min(ends)), high=max(0.0, *ends))


def _best_ttl(prob: float, mean_s: float, recompute: Range, resume: Range, rate: Range) -> Range:
    """Hold while hazard(t) x (recompute - resume) > rate, for pauses exponential with mean `mean_s` and P(return) = `prob`.

    hazard(t) = p/m e^(-t/m) / (1 - p + p e^(-t/m)) falls with t, so the best time-to-live is where the two sides meet."""
    ends = []
    for again, per_s in ((recompute.low, rate.low), (recompute.high, rate.high)):
        for back in (resume.low, resume.high):
            saved = max(0.0, again - back)
            needed = per_s * mean_s / saved if saved > 0 else math.inf  # hazard x mean must exceed this
            if prob <= 0 or needed >= 1:
                # hazard x mean starts at p and never exceeds 1
                ends.append(0.0)
            elif prob >= 1:
                ends.append(math.inf)
            else:
                ends.append(max(0.0, mean_s * math.log(prob * (1 - needed) / (needed * (1 - prob)))))
    return Range(low=min(ends), high=max(ends))


def _envelope(ways: Sequence[Way], prob: float) -> tuple[tuple[float, str], ...]:
    """Lower envelope of cost(hold) = write + p resume + rate hold, at the middles: from which pause on each way is cheapest."""
    lines = [
        (
            way.estimate_write_usd.middle + prob * way.estimate_resume_usd.middle,
            way.estimate_rate_usd_per_s.middle,
            way.id,
        )
        for way in ways
    ]
    now, schedule = 0.0, []
    current = min(lines, key=lambda line: (line[0], line[1]))
    schedule.append((0.0, current[2]))
    while True:
        crossings = [
            ((line[0] - current[0]) / (current[1] - line[1]), line)
            for line in lines
            if line[1] < current[1] and line is not current
        ]
        later = [(max(at, now), line) for at, line in crossings]
        if not later:
            return tuple(schedule)
        now, current = min(later, key=lambda pair: (pair[0], pair[1][1]))
        schedule.append((now, current[2]))
