"""Price every layout x batch x chunk of a pool at once: together (prompts and answers on the same chips), decode or prefill only.

Each function is one pass of numpy over a grid; the arithmetic is `cost`'s (`closed_loop` where prompts and answers share chips,
`step_cost` for each alone), the waiting `plan.queue`. Instances are whole numbers, and the batch is what the load leaves on each.
Decides nothing: filtering and ranking happen on the returned table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_chip, max_sequences, memory_per_chip, usable_bytes
from ridgepoint.cost.serving import ClosedLoop, price_serving, serving_amounts
from ridgepoint.cost.step import StepCost, price_step, step_cost
from ridgepoint.plan.layouts import Degrees, enumerate_layouts
from ridgepoint.plan.points import Points, flatten
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.queue import MAX_UTILISATION, mean_wait, wait_quantile
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

    @property
    def chips(self) -> Array:
        return self.degrees.chips


def instance_limit(pool: Pool, goal: Goal) -> int:
    """Most chips one instance may take: what there is, at most two scale-up domains or 64 chips, and only over links whose speed
    is known."""
    domain = pool.chip.scaleup_domain_chips or 1
    most = max(64, 2 * domain) if domain <= 288 else 512
    if pool.chip.spec_scaleout_bytes_per_s is None:
        most = domain
    if pool.chip.spec_scaleup_bytes_per_s is None:
        most = 1
    return int(min(most, pool.count or most, goal.chips or most))


def lay_out(spec: ModelSpec, pool: Pool, workload: Workload, goal: Goal, *, role: str) -> Side:
    """Layouts with room for the weights and at least one sequence (of the goal's context, if it sets one)."""
    degrees = enumerate_layouts(spec, pool.chip, instance_limit(pool, goal))
    context = float(workload.decode_context if role != "prefill" else workload.input_tokens)
    layout = degrees.layout()
    room = np.asarray(max_sequences(spec, pool.precision, layout, pool.chip, context=context, step_tokens=min(CHUNKS)), dtype=np.float64)
    fits = room >= 1
    if goal.context is not None:
        longest = max_sequences(spec, pool.precision, layout, pool.chip, context=float(goal.context), step_tokens=min(CHUNKS))
        fits &= np.asarray(longest) >= 1
    return Side(spec=spec, pool=pool, degrees=degrees.pick(fits), room=np.floor(room[fits]))


def _price(side: Side, layout: Layout, groups: tuple[Group, ...]) -> StepCost:
    return step_cost(side.spec, side.pool.chip, layout, side.pool.precision, StepBatch(groups=groups), side.pool.calibration)


def _batches(room: Array, workload: Workload) -> Array:
    """[layouts, batches], geometric from one sequence to the layout's room (or all users, if fewer)."""
    top = np.maximum(1.0, np.minimum(room, float(workload.users or np.inf)))
    return np.floor(top[:, None] ** np.linspace(0.0, 1.0, NUM_BATCHES) + 1e-6)


def _instances(workload: Workload, batch: Array, seconds_per_token: Array) -> tuple[Array, Array]:
    """(whole instances, sequences on each) for the load, when an answer takes written x seconds_per_token: a user who waits for
    a first token holds a seat too, which errs on the side of more instances."""
    if workload.users is None and workload.requests_per_s is None:
        return np.ones_like(batch), batch
    residence = workload.written_tokens * seconds_per_token
    if workload.users is not None:
        active = workload.users * residence / (residence + workload.think_time_s)
    else:
        active = float(workload.requests_per_s or 0.0) * residence
    instances = np.maximum(1.0, np.ceil(active / batch - 1e-9))
    return instances, active / instances


def _decode_group(workload: Workload, batch: Array) -> Group:
    new = 1.0 + workload.draft_tokens
    return Group(count=batch, new=new, cached=workload.decode_context, logits=new)


def _watts(step: StepCost, pool: Pool) -> tuple[Array, bool]:
    known = pool.chip.spec_tdp_w is not None
    return (np.asarray(step.estimate_j) if known else np.zeros_like(step.estimate_s)), known


def sweep_together(side: Side, index: int, workload: Workload) -> Points:
    """Rows of kind 0: prompts and answers share every instance, by the closed loop of `cost.serving`; arrivals being random, a
    prompt also waits for the ones before it."""
    layout, layout3 = side.degrees.layout(1), side.degrees.layout(2)
    per_token, written = workload.tokens_per_step, float(workload.written_tokens)
    batch = _batches(side.room, workload)
    first = _price(side, layout, (_decode_group(workload, batch),))
    instances, batch = _instances(workload, batch, np.asarray(first.estimate_s) / per_token)
    batch3, instances = batch[:, :, None], instances[:, :, None]
    prompt = workload.new_input_tokens * workload.rollouts
    chunk = np.unique(np.minimum(np.array(CHUNKS), 2 ** np.ceil(np.log2(prompt))))[None, None, :]
    load = ClosedLoop(
        input_tokens=float(workload.input_tokens), output_tokens=written, concurrency=batch3, prefix_hit_frac=1 - prompt / workload.input_tokens,
        draft_tokens=float(workload.draft_tokens), tokens_per_step=per_token, prompts_per_request=1.0 / workload.rollouts,
    )  # fmt: skip
    pool = side.pool
    amounts = serving_amounts(
        side.spec, pool.chip, layout3, pool.precision, load, chunk_tokens=chunk, routing_skew=pool.calibration.routing_skew
    )
    loop = price_serving(amounts, pool.chip, pool.calibration)
    t0, t1 = np.asarray(loop.decode.estimate_s), np.asarray(loop.mixed.estimate_s)
    tpot = np.asarray(loop.estimate_tpot_s)
    prompts_per_step = batch3 * per_token / written / workload.rollouts
    rho = prompts_per_step / np.asarray(amounts.prompts_per_chunk)
    service = t1 * amounts.steps_per_prompt
    bounded = np.where(rho < MAX_UTILISATION, rho, 0.0)  # the others are dropped below
    ttft = np.asarray(loop.estimate_ttft_s) + mean_wait(bounded, service)
    ttft_p90 = np.asarray(loop.estimate_ttft_s) + 0.5 * t1 + wait_quantile(bounded, service, 0.9)
    residence = ttft + written * tpot
    rate = batch3 / residence
    chips = side.chips[:, None, None]
    used = _memory(side, layout3, batch3, chunk + batch3, workload)
    j0, known = _watts(loop.decode, pool)
    j1, _ = _watts(loop.mixed, pool)
    per_step_j = j0 + prompts_per_step / np.asarray(amounts.prompts_per_mixed) * (j1 - j0)
    watts = np.where(known, per_step_j / (tpot * per_token) * instances, np.nan)
    low, middle, high = pool.usd_per_hour
    usd_per_request = chips * middle / 3600.0 / rate
    keep = (rho < MAX_UTILISATION) & (used <= 1.0)
    out_share = np.minimum(1.0, written * t0 / per_token / residence)
    shape = np.broadcast_shapes(t0.shape, t1.shape, used.shape)
    degrees = side.degrees
    return flatten(
        shape, keep, kind=0.0, d_pool=float(index), p_pool=float(index), d_tp=degrees.tp[:, None, None], d_dp=degrees.dp_attention[:, None, None],
        d_ep=degrees.ep[:, None, None], d_pp=degrees.pp[:, None, None], d_instances=instances, batch=batch3, chunk=chunk,
        draft=float(workload.draft_tokens), chips=instances * chips, d_chips=instances * chips, requests_per_s=rate * instances,
        step_s=tpot * per_token, interval_s=np.maximum(t0, t1), tpot_s=tpot, ttft_s=ttft, ttft_p90_s=ttft_p90,
        usd_per_hour=instances * chips * middle, usd_low_frac=low / middle, usd_high_frac=high / middle,
        usd_per_mtok=usd_per_request / written * 1e6,
        usd_in_per_mtok=usd_per_request * (1 - out_share) / workload.new_input_tokens * 1e6,
        usd_out_per_mtok=usd_per_request * out_share / written * 1e6, watts=watts, joules_per_token=watts / (rate * instances * written),
        prefill_util=rho, memory_frac=used, supply=instances * chips / (pool.count or np.inf), sigma=pool.calibration.uncertainty, sigma_ttft=pool.calibration.ttft_uncertainty,
    )  # fmt: skip


def _memory(side: Side, layout: Layout, sequences: Array, step_tokens: Array, workload: Workload) -> Array:
    parts = memory_per_chip(
        side.spec, side.pool.precision, layout, sequences=sequences, context=float(workload.decode_context), step_tokens=step_tokens
    )
    return np.asarray(sum(parts.values())) / usable_bytes(side.pool.chip, layout)


@dataclass(frozen=True, kw_only=True)
class DecodeSide:
    """Decode-only rows of one pool: layout row, batch, step seconds, instances, joules per step (nan: unknown)."""

    pool: int
    degrees: Degrees
    batch: Array
    instances: Array
    step_s: Array
    joules: Array
    memory_frac: Array


def sweep_decode(side: Side, index: int, workload: Workload) -> DecodeSide:
    layout = side.degrees.layout(1)
    batch = _batches(side.room, workload)
    per_token = workload.tokens_per_step
    first = _price(side, layout, (_decode_group(workload, batch),))
    instances, batch = _instances(workload, batch, np.asarray(first.estimate_s) / per_token)
    step = _price(side, layout, (_decode_group(workload, batch),))
    used = _memory(side, layout, batch, batch, workload)
    seconds = np.asarray(step.estimate_s)
    joules, known = _watts(step, side.pool)
    rows, columns = np.nonzero(np.broadcast_to(used <= 1.0, seconds.shape))
    return DecodeSide(
        pool=index, degrees=side.degrees.pick(rows), batch=batch[rows, columns], instances=instances[rows, columns],
        step_s=seconds[rows, columns], joules=joules[rows, columns] if known else np.full(len(rows), np.nan),
        memory_frac=np.broadcast_to(used, seconds.shape)[rows, columns],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrefillSide:
    """Prefill-only rows: per step, every attention rank and stage of an instance computes `chunk` tokens of a prompt of its own."""

    pool: int
    degrees: Degrees
    chunk: Array
    ranks: Array
    service_s: Array  # one prompt, alone in its rank
    latency_s: Array  # what its user waits for it: the same, slower where the engine is, and the host's own time
    joules: Array  # per prompt
    memory_frac: Array


def sweep_prefill(side: Side, index: int, workload: Workload) -> PrefillSide:
    layout = side.degrees.layout(1)
    prompt = workload.new_input_tokens * workload.rollouts
    ranks = (side.degrees.dp_attention * side.degrees.pp)[:, None]
    chunk = np.unique(np.minimum(np.array(CHUNKS), prompt))[None, :]
    steps = np.ceil(prompt / chunk - 1e-9)
    piece = prompt / steps
    cached = workload.cached_input_tokens + 0.5 * (prompt - piece)
    work = StepBatch(groups=(Group(count=ranks * 1.0, new=piece, cached=cached, logits=1.0 / steps),))
    calibration = side.pool.calibration
    amounts = step_amounts(side.spec, layout, side.pool.precision, work, routing_skew=calibration.routing_skew)
    step = price_step(amounts, side.pool.chip, calibration, graph=False)
    seconds = np.asarray(step.estimate_s)
    host_s = amounts.launches * calibration.prefill_host_kernel_s + calibration.request_overhead_s
    latency = np.broadcast_to(calibration.prefill_slowdown * seconds * steps + host_s, seconds.shape)
    parts = memory_per_chip(
        side.spec, side.pool.precision, layout, sequences=ranks * 1.0, context=float(workload.input_tokens), step_tokens=ranks * piece
    )
    used = np.asarray(sum(parts.values())) / usable_bytes(side.pool.chip, layout)
    joules, known = _watts(step, side.pool)
    rows, columns = np.nonzero(np.broadcast_to(used <= 1.0, seconds.shape))
    per_prompt = joules[rows, columns] * steps[0, columns] / ranks[rows, 0]
    return PrefillSide(
        pool=index, degrees=side.degrees.pick(rows), chunk=piece[0, columns], ranks=ranks[rows, 0],
        service_s=seconds[rows, columns] * steps[0, columns], latency_s=latency[rows, columns], joules=per_prompt if known else np.full(len(rows), np.nan),
        memory_frac=np.broadcast_to(used, seconds.shape)[rows, columns],
    )  # fmt: skip


def kv_handoff_bytes_per_chip(side_spec: ModelSpec, pool: Pool, degrees: Degrees, tokens: float) -> Array:
    """KV of one prompt on each chip that holds a share of it."""
    layout = degrees.layout()
    one_rank = np.asarray(kv_bytes_per_chip(side_spec, pool.precision, layout, 1.0, tokens))
    return one_rank * degrees.dp_attention  # kv_bytes_per_chip spreads sequences over ranks; this sequence lies on one of them
