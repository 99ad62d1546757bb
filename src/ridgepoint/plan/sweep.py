"""Price every layout x batch x chunk of a pool at once: together (prompts and answers on the same chips), decode or prefill only.

Each function is one pass of numpy over a grid; the arithmetic is `cost.step_cost`, the waiting `plan.queue`. A step carries
`batch` decoding sequences and, in a fraction f of the steps, a `chunk` of prompt tokens, f being what keeps prefill and decode
in balance: f = (batch x tokens per step / written tokens) x new prompt tokens / chunk. Instances are whole numbers; the batch is
what the load leaves on each. Decides nothing: filtering and ranking happen on the returned table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_chip, max_sequences, memory_per_chip, usable_bytes
from ridgepoint.cost.step import StepCost, step_cost
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
    available: float

    @property
    def chips(self) -> Array:
        return self.degrees.chips


def instance_limit(pool: Pool, goal: Goal) -> int:
    """Most chips one instance may take: what there is, but never more than two scale-up domains or 64 chips."""
    domain = pool.chip.scaleup_domain_chips or 1
    most = max(64, 2 * domain) if domain <= 288 else 512
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
    available = float(min(pool.count or 1e9, goal.chips or 1e9))
    return Side(spec=spec, pool=pool, degrees=degrees.pick(fits), room=np.floor(room[fits]), available=available)


def _price(side: Side, layout: Layout, groups: tuple[Group, ...]) -> StepCost:
    return step_cost(side.spec, side.pool.chip, layout, side.pool.precision, StepBatch(groups=groups), side.pool.calibration)


def _batches(room: Array, workload: Workload) -> Array:
    """[layouts, batches], geometric from one sequence to the layout's room (or all users, if fewer)."""
    top = np.maximum(1.0, np.minimum(room, float(workload.users or np.inf)))
    return np.unique(np.floor(np.exp(np.linspace(0.0, 1.0, NUM_BATCHES) * np.log(top)[:, None])), axis=1) if len(top) == 1 else np.floor(
        np.exp(np.linspace(0.0, 1.0, NUM_BATCHES) * np.log(top)[:, None])
    )


def _instances(workload: Workload, batch: Array, seconds_per_token: Array, extra_s: float | Array) -> tuple[Array, Array]:
    """(whole instances, sequences on each) for the load, when an answer takes written x seconds_per_token + extra_s."""
    if workload.users is None and workload.requests_per_s is None:
        return np.ones_like(batch), batch
    residence = workload.written_tokens * seconds_per_token
    if workload.users is not None:
        active = workload.users * residence / (residence + extra_s + workload.think_time_s)
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
    """Rows of kind 0: chunked prefill rides along with decode on every instance."""
    layout, layout3 = side.degrees.layout(1), side.degrees.layout(2)
    prompt = workload.new_input_tokens * workload.rollouts  # tokens a prompt computes; its rollouts share them
    ranks = (side.degrees.dp_attention * side.degrees.pp)[:, None, None]
    per_token = workload.tokens_per_step
    batch = _batches(side.room, workload)
    first = _price(side, layout, (_decode_group(workload, batch),))
    instances, batch = _instances(workload, batch, np.asarray(first.estimate_s) / per_token, 0.0)
    batch3, instances = batch[:, :, None], instances[:, :, None]
    chunk = np.array(CHUNKS)[None, None, :]
    prompts = np.maximum(ranks, chunk / prompt)  # each attention rank and stage works on prompts of its own
    piece = chunk / prompts
    cached = workload.cached_input_tokens + 0.5 * (prompt - np.minimum(piece, prompt))
    alone = _price(side, layout3, (_decode_group(workload, batch3),))
    mixed = _price(
        side, layout3, (_decode_group(workload, batch3), Group(count=prompts, new=piece, cached=cached, logits=np.minimum(1.0, piece / prompt)))
    )
    t0, t1 = np.asarray(alone.estimate_s), np.maximum(np.asarray(mixed.estimate_s), np.asarray(alone.estimate_s))
    written = float(workload.written_tokens)
    f = batch3 * per_token / written * workload.new_input_tokens / chunk
    mean = t0 + f * (t1 - t0)
    rate = batch3 * per_token / (written * mean)
    service = np.ceil(prompt / piece - 1e-9) * t1
    rho = rate / workload.rollouts / prompts * service * np.minimum(1.0, prompt / piece)
    wait = mean_wait(rho, service)
    ttft = 0.5 * mean + wait + service
    ttft_p90 = t1 + wait_quantile(rho, service, 0.9) + service
    chips = side.chips[:, None, None]
    used = _memory(side, layout3, batch3 + (rho * prompts), chunk + batch3, workload)
    j0, known = _watts(alone, side.pool)
    j1, _ = _watts(mixed, side.pool)
    watts = np.where(known, (j0 + f * (j1 - j0)) / mean * instances, np.nan)
    low, middle, high = side.pool.usd_per_hour
    usd_per_request = chips * middle / 3600.0 / rate
    keep = (f <= 1.0) & (rho < MAX_UTILISATION) & (used <= 1.0) & (instances * chips <= side.available) & (batch3 >= 1e-9)
    out_share = t0 / mean
    shape = np.broadcast_shapes(t0.shape, t1.shape)
    degrees = side.degrees
    return flatten(
        shape, keep, kind=0.0, d_pool=float(index), p_pool=float(index), d_tp=degrees.tp[:, None, None], d_dp=degrees.dp_attention[:, None, None],
        d_ep=degrees.ep[:, None, None], d_pp=degrees.pp[:, None, None], d_instances=instances, batch=batch3, chunk=chunk,
        draft=float(workload.draft_tokens), chips=instances * chips, d_chips=instances * chips, requests_per_s=rate * instances, step_s=mean,
        interval_s=t1, tpot_s=mean / per_token, ttft_s=ttft, ttft_p90_s=ttft_p90, usd_per_hour=instances * chips * middle,
        usd_low_frac=low / middle, usd_high_frac=high / middle, usd_per_mtok=usd_per_request / written * 1e6,
        usd_in_per_mtok=usd_per_request * (1 - out_share) / workload.new_input_tokens * 1e6,
        usd_out_per_mtok=usd_per_request * out_share / written * 1e6, watts=watts, joules_per_token=watts / (rate * instances * written),
        prefill_util=rho, memory_frac=used, sigma=side.pool.calibration.uncertainty,
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


def sweep_decode(side: Side, index: int, workload: Workload, goal: Goal) -> DecodeSide:
    layout = side.degrees.layout(1)
    batch = _batches(side.room, workload)
    per_token = workload.tokens_per_step
    first = _price(side, layout, (_decode_group(workload, batch),))
    instances, batch = _instances(workload, batch, np.asarray(first.estimate_s) / per_token, goal.ttft_s or 0.0)
    step = _price(side, layout, (_decode_group(workload, batch),))
    used = _memory(side, layout, batch, batch, workload)
    seconds = np.asarray(step.estimate_s)
    joules, known = _watts(step, side.pool)
    keep = (used <= 1.0) & (instances * side.chips[:, None] <= side.available)
    rows, columns = np.nonzero(np.broadcast_to(keep, seconds.shape))
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
    step = _price(side, layout, (Group(count=ranks * 1.0, new=piece, cached=cached, logits=1.0 / steps),))
    seconds = np.asarray(step.estimate_s)
    parts = memory_per_chip(
        side.spec, side.pool.precision, layout, sequences=ranks * 1.0, context=float(workload.input_tokens), step_tokens=ranks * piece
    )
    used = np.asarray(sum(parts.values())) / usable_bytes(side.pool.chip, layout)
    joules, known = _watts(step, side.pool)
    rows, columns = np.nonzero(np.broadcast_to(used <= 1.0, seconds.shape) & (side.chips[:, None] <= side.available))
    per_prompt = joules[rows, columns] * steps[0, columns] / ranks[rows, 0]
    return PrefillSide(
        pool=index, degrees=side.degrees.pick(rows), chunk=piece[0, columns], ranks=ranks[rows, 0],
        service_s=seconds[rows, columns] * steps[0, columns], joules=per_prompt if known else np.full(len(rows), np.nan),
        memory_frac=np.broadcast_to(used, seconds.shape)[rows, columns],
    )  # fmt: skip


def kv_handoff_bytes_per_chip(side_spec: ModelSpec, pool: Pool, degrees: Degrees, tokens: float) -> Array:
    """KV of one prompt on each chip that holds a share of it."""
    layout = degrees.layout()
    one_rank = np.asarray(kv_bytes_per_chip(side_spec, pool.precision, layout, 1.0, tokens))
    return one_rank * degrees.dp_attention  # kv_bytes_per_chip spreads sequences over ranks; this sequence lies on one of them
