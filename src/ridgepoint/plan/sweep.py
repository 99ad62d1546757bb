"""Price every layout x batch x chunk, free-running or on a timetable, of a pool at once, prompts and answers sharing the chips.

One pass of numpy over a grid; the arithmetic is `cost.serving`'s closed loop, the waiting `plan.queue`, the load `plan.load`.
Decides nothing: filtering and ranking happen on the returned table. Rows that would not fit or would saturate are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.drafting import (
    Drafter,
    draft_kv_bytes_per_chip,
    draft_prefill,
    draft_step,
    draft_weight_bytes_per_chip,
)
from ridgepoint.cost.energy import DEFAULT_ENERGY
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import filled_frac, max_sequences, memory_per_chip
from ridgepoint.cost.queueing import worst_wait_s
from ridgepoint.cost.serving import ClosedLoop, ServingAmounts, ServingCost, price_serving, serving_amounts
from ridgepoint.plan.layouts import MAIN, Degrees, Residence, enumerate_layouts
from ridgepoint.plan.load import carries, requests_per_s, settle
from ridgepoint.plan.points import Points, flatten
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.purchase import paid_chips
from ridgepoint.plan.queue import MAX_UTILISATION, mean_wait, wait_quantile
from ridgepoint.plan.timetable import Pace, on_timetable
from ridgepoint.plan.workload import Goal, Workload

Array = NDArray[np.float64]

NUM_BATCHES = 24
CHUNKS = (256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One pool laid out: the layouts that hold the model and the sequences each has room for."""

    spec: ModelSpec
    pool: Pool
    degrees: Degrees
    room: Array  # sequences of the mean context per instance
    drafter: Drafter | None = None

    @property
    def chips(self) -> Array:
        return self.degrees.chips


def instance_limit(pool: Pool, goal: Goal) -> int:
    """Most chips one instance may take: what there is, at most two scale-up domains or 144 chips, and only over links whose speed
    is known."""
    domain = pool.chip.scaleup_domain_chips or 1
    most = max(144, 2 * domain) if domain <= 288 else 512
    if pool.chip.spec_scaleout_bytes_per_s is None:
        most = domain
    if pool.chip.spec_scaleup_bytes_per_s is None:
        most = 1
    return int(min(most, pool.count or most, goal.chips or most))


def lay_out(
    spec: ModelSpec,
    pool: Pool,
    workload: Workload,
    goal: Goal,
    *,
    role: str,
    residence: Residence = MAIN,
    drafter: Drafter | None = None,
) -> Side:
    """Layouts with room for the weights (a drafter's too) and at least one sequence (of the goal's context, if it sets one)."""
    degrees = enumerate_layouts(spec, pool.chip, instance_limit(pool, goal), residence)
    context = float(workload.decode_context if role != "prefill" else workload.input_tokens)
    layout = degrees.layout()

    def seats(tokens: float) -> Array:
        weights, kv = 0.0, 0.0
        if drafter is not None:
            weights = draft_weight_bytes_per_chip(drafter, pool.precision, layout)
            kv = draft_kv_bytes_per_chip(drafter, pool.precision, layout, 1.0, tokens)
        found = max_sequences(
            spec, pool.precision, layout, pool.chip, context=tokens, step_tokens=min(CHUNKS), beside_bytes=weights, beside_kv_bytes=kv
        )  # fmt: skip
        return np.asarray(found, dtype=np.float64)

    room = seats(context)
    fits = room >= 1
    if goal.context is not None:
        fits &= seats(float(goal.context)) >= 1
    return Side(spec=spec, pool=pool, degrees=degrees.pick(fits), room=np.floor(room[fits]), drafter=drafter)


def batches(room: Array, workload: Workload) -> Array:
    """[layouts, batches], geometric from one sequence to the layout's room (or all users, if fewer)."""
    top = np.maximum(1.0, np.minimum(room, float(workload.users or np.inf)))
    return np.floor(top[:, None] ** np.linspace(0.0, 1.0, NUM_BATCHES) + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Prompts and answers sharing instances: a priced closed loop at some batches, and what a user of it waits."""

    amounts: ServingAmounts
    cost: ServingCost
    pace: Pace
    residence_s: Array
    drafting: Drafting


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What a drafter adds: to every step of an instance, and to every prompt. Zero without one."""

    step_s: Array
    step_j: Array
    prompt_s: Array
    prompt_j: Array


def drafting(side: Side, workload: Workload, layout: Layout, batch: Array) -> Drafting:
    if side.drafter is None:
        zero = np.zeros(1)
        return Drafting(step_s=zero, step_j=zero, prompt_s=zero, prompt_j=zero)
    pool, prompt = side.pool, workload.new_input_tokens * workload.rollouts
    step = draft_step(
        side.drafter, pool.chip, layout, pool.precision, pool.calibration, sequences=batch, context=float(workload.decode_context),
        draft_tokens=float(workload.draft_tokens),
    )  # fmt: skip
    prefill = draft_prefill(
        side.drafter, pool.chip, layout, pool.precision, pool.calibration, new=prompt, cached=workload.cached_input_tokens
    )  # fmt: skip
    amounts = (step.estimate_s, step.estimate_j, prefill.estimate_s, prefill.estimate_j)
    step_s, step_j, prompt_s, prompt_j = (np.asarray(amount, dtype=np.float64) for amount in amounts)
    return Drafting(step_s=step_s, step_j=step_j, prompt_s=prompt_s, prompt_j=prompt_j)


def close_loop(side: Side, workload: Workload, batch: Array, chunk: Array, intervals: Array | None = None) -> Loop:
    """`batch` sequences on each instance [layouts, batches, chunks]; arrivals being random, a prompt also waits for the ones
    before it. Steps run freely or, with `intervals`, on a timetable. Points beyond the refusal threshold carry no wait: the caller
    drops them."""
    pool, written = side.pool, float(workload.written_tokens)
    prompt = workload.new_input_tokens * workload.rollouts
    load = ClosedLoop(
        input_tokens=float(workload.input_tokens), output_tokens=written, concurrency=batch, prefix_hit_frac=1 - prompt / workload.input_tokens,
        draft_tokens=float(workload.draft_tokens), tokens_per_step=workload.tokens_per_step, prompts_per_request=1.0 / workload.rollouts,
    )  # fmt: skip
    amounts = serving_amounts(
        side.spec, pool.chip, side.degrees.layout(2), pool.precision, load, chunk_tokens=chunk, routing_skew=pool.calibration.routing_skew,
        tiles=pool.calibration.tiles,
    )  # fmt: skip
    cost = price_serving(amounts, pool.chip, pool.calibration)
    draft = drafting(side, workload, side.degrees.layout(2), batch)
    if intervals is None:
        pace = _free_running(amounts, cost, draft, workload, batch)
    else:
        calibration = pool.calibration
        host_s = amounts.mixed.launches * calibration.prefill_host_kernel_s + calibration.request_overhead_s
        pace = on_timetable(
            decode_s=np.asarray(cost.decode.estimate_s) + draft.step_s, mixed_s=np.asarray(cost.mixed.estimate_s) + draft.step_s + draft.prompt_s,
            prompts_per_mixed=np.asarray(amounts.prompts_per_mixed), steps_per_prompt=np.asarray(amounts.steps_per_prompt),
            overhead_s=np.asarray(host_s), prompts_per_step=_prompts_per_step(workload, batch), intervals=intervals,
            tokens_per_step=workload.tokens_per_step,
        )  # fmt: skip
    return Loop(amounts=amounts, cost=cost, pace=pace, residence_s=pace.ttft_s + written * pace.tpot_s, drafting=draft)


def _prompts_per_step(workload: Workload, batch: Array) -> Array:
    """Answers that end in a step, and with them the prompts that take their seats."""
    return batch * workload.tokens_per_step / workload.written_tokens / workload.rollouts


def _free_running(
    amounts: ServingAmounts, cost: ServingCost, draft: Drafting, workload: Workload, batch: Array
) -> Pace:
    """Steps follow one another; the longest carries a chunk of prompt."""
    others = np.maximum(np.asarray(amounts.running) - 1.0, 0.0) / workload.written_tokens / workload.rollouts
    tpot = np.asarray(cost.estimate_tpot_s) + draft.step_s / workload.tokens_per_step + others * draft.prompt_s
    rho = _prompts_per_step(workload, batch) / np.asarray(amounts.prompts_per_chunk)
    bounded = np.where(rho < MAX_UTILISATION, rho, 0.0)
    service = np.asarray(cost.mixed.estimate_s) * amounts.steps_per_prompt + draft.prompt_s
    unhurried = np.asarray(cost.estimate_ttft_s) + draft.prompt_s
    longest = np.maximum(cost.decode.estimate_s, cost.mixed.estimate_s) + draft.step_s
    return Pace(
        interval_s=longest, busy_s=tpot * workload.tokens_per_step, tpot_s=tpot, ttft_s=unhurried + mean_wait(bounded, service),
        ttft_p90_s=unhurried + 0.5 * cost.mixed.estimate_s + wait_quantile(bounded, service, 0.9), utilisation=rho,
    )  # fmt: skip


def sweep_together(side: Side, index: int, workload: Workload, intervals: Array | None = None) -> Points:
    """Rows of kind 0: every instance takes prompts and writes answers, by the closed loop of `cost.serving`, its steps running freely
    or leaving at the first of `intervals` that holds a decode step and the chunk."""
    pool, degrees, chips = side.pool, side.degrees, side.chips[:, None, None]
    per_token, written = workload.tokens_per_step, float(workload.written_tokens)
    prompt = workload.new_input_tokens * workload.rollouts
    chunk = np.unique(np.minimum(np.array(CHUNKS), 2 ** np.ceil(np.log2(prompt))))[None, None, :]
    room = batches(side.room, workload)[:, :, None]
    instances, batch = settle(
        workload, room, lambda filled: _finite(close_loop(side, workload, filled, chunk, intervals).residence_s)
    )
    loop = close_loop(side, workload, batch, chunk, intervals)
    pace, decode_s = loop.pace, np.asarray(loop.cost.decode.estimate_s) + loop.drafting.step_s
    tpot, stay = _finite(pace.tpot_s), _finite(loop.residence_s)
    rate = requests_per_s(workload, instances, batch, stay)
    used = memory_frac(side, degrees.layout(2), batch, chunk + batch, workload)
    keep = (pace.utilisation < MAX_UTILISATION) & (used <= 1.0)
    if intervals is not None:
        keep = keep & carries(workload, instances, batch, stay)
    low, middle, high = pool.usd_per_hour
    paid = paid_chips(instances, chips, pool.unit, pool.count, filled=workload.is_open)
    usd_per_request = paid * middle / 3600.0 / rate
    out_share = np.minimum(1.0, written * decode_s / per_token / stay)
    watts = _watts_together(loop, workload, batch, pool, chips) * instances
    return flatten(
        np.broadcast_shapes(tpot.shape, used.shape, instances.shape), keep,
        kind=0.0, d_pool=float(index), p_pool=float(index), d_tp=degrees.tp[:, None, None], d_dp=degrees.dp_attention[:, None, None],
        d_ep=degrees.ep[:, None, None], d_pp=degrees.pp[:, None, None], d_memory=float(degrees.residence.code), d_instances=instances, batch=batch, chunk=chunk,
        draft=float(workload.draft_tokens), timetable=float(intervals is not None), chips=instances * chips, d_chips=instances * chips, paid_chips=paid,
        d_paid=paid, requests_per_s=rate, step_s=tpot * per_token, draft_s=loop.drafting.step_s, interval_s=pace.interval_s,
        worst_wait_s=worst_wait_s(1.0) * pace.interval_s, tpot_s=tpot, busy_tpot_s=pace.busy_s / per_token, ttft_s=pace.ttft_s, ttft_p90_s=pace.ttft_p90_s,
        usd_per_hour=paid * middle, usd_low_frac=low / middle, usd_high_frac=high / middle, usd_per_mtok=usd_per_request / written * 1e6,
        usd_in_per_mtok=usd_per_request * (1 - out_share) / workload.new_input_tokens * 1e6,
        usd_out_per_mtok=usd_per_request * out_share / written * 1e6, watts=watts, joules_per_token=watts / (rate * written),
        prefill_util=np.maximum(0.0, 1 - decode_s / (pace.busy_s if intervals is not None else tpot * per_token)), memory_frac=used,
        supply=instances * chips / (pool.count or np.inf), sigma=pool.calibration.uncertainty, sigma_ttft=pool.calibration.ttft_uncertainty,
    )  # fmt: skip


def _finite(values: Array) -> Array:
    """Rows without a departure are dropped, but must not spoil the arithmetic of others on the way."""
    return np.where(np.isfinite(values), values, 1e6)


def _watts_together(loop: Loop, workload: Workload, batch: Array, pool: Pool, chips: Array) -> Array:
    """Mean power of one instance; nan where the chip's is unknown. Between departures chips burn their static share."""
    if pool.chip.spec_tdp_w is None:
        return np.full_like(loop.residence_s, np.nan)
    decode_j, mixed_j = np.asarray(loop.cost.decode.estimate_j), np.asarray(loop.cost.mixed.estimate_j)
    prompts_per_step = _prompts_per_step(workload, batch)
    per_step_j = decode_j + prompts_per_step / np.asarray(loop.amounts.prompts_per_mixed) * (mixed_j - decode_j)
    per_step_j = per_step_j + loop.drafting.step_j + prompts_per_step * loop.drafting.prompt_j
    step_s = _finite(loop.pace.tpot_s) * workload.tokens_per_step
    idle_w = chips * pool.chip.spec_tdp_w * DEFAULT_ENERGY.static_frac
    return (per_step_j + idle_w * np.maximum(step_s - loop.pace.busy_s, 0.0)) / step_s


def memory_frac(side: Side, layout: Layout, sequences: Array, step_tokens: Array, workload: Workload) -> Array:
    parts = memory_per_chip(
        side.spec,
        side.pool.precision,
        layout,
        sequences=sequences,
        context=float(workload.decode_context),
        step_tokens=step_tokens,
    )
    parts |= drafter_parts(side, layout, sequences, parts["kv"], workload)
    return np.asarray(filled_frac(parts, side.pool.chip, layout))


def drafter_parts(side: Side, layout: Layout, sequences: Array, kv: Array, workload: Workload) -> dict[str, Array]:
    """The drafter's weights, and the cache with its own beside the model's `kv`."""
    if side.drafter is None:
        return {}
    precision, context = side.pool.precision, float(workload.decode_context)
    own = draft_kv_bytes_per_chip(side.drafter, precision, layout, sequences, context)
    return {"drafter": draft_weight_bytes_per_chip(side.drafter, precision, layout), "kv": kv + own}
