"""Price each phase on chips of its own: decode-only and prefill-only rows of a pool, for `pair` to match.

A decode row holds `batch` sequences per instance and nothing else; a prefill row computes one chunk per attention rank and
pipeline stage and step, each of a prompt of its own. Arithmetic by `cost`, load by `plan.load`; nothing is chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.energy import DEFAULT_ENERGY
from ridgepoint.cost.memory import filled_frac, kv_bytes_per_chip, memory_per_chip
from ridgepoint.cost.step import StepCost, price_step, step_cost
from ridgepoint.plan.layouts import Degrees
from ridgepoint.plan.load import requests_per_s, settle
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.sweep import CHUNKS, Side, batches, drafter_parts, drafting, memory_frac
from ridgepoint.plan.timetable import next_departure
from ridgepoint.plan.workload import Workload

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecodeSide:
    """Decode-only rows of one pool: layout row, batch, step seconds, instances, joules per step (nan: unknown)."""

    pool: int
    degrees: Degrees
    batch: Array
    instances: Array
    requests_per_s: Array  # of all instances
    step_s: Array  # drafting included, and on a timetable the wait for the next departure
    busy_s: Array
    timetable: bool
    draft_s: Array
    joules: Array
    memory_frac: Array


def sweep_decode(side: Side, index: int, workload: Workload, intervals: Array | None = None) -> DecodeSide:
    """Steps follow one another, all alike; with `intervals` each waits for the next of them."""
    layout, pool, new = side.degrees.layout(1), side.pool, 1.0 + workload.draft_tokens

    def step_of(batch: Array) -> StepCost:
        group = Group(count=batch, new=new, cached=workload.decode_context, logits=new)
        return step_cost(side.spec, pool.chip, layout, pool.precision, StepBatch(groups=(group,)), pool.calibration)

    def paced(seconds: Array) -> Array:
        return seconds if intervals is None else next_departure(seconds, intervals)

    def seconds_of(batch: Array) -> Array:
        found = paced(np.asarray(step_of(batch).estimate_s) + drafting(side, workload, layout, batch).step_s)
        return np.where(np.isfinite(found), found, 1e6)  # rows without a departure, dropped below

    def residence(batch: Array) -> Array:
        return workload.written_tokens * seconds_of(batch) / workload.tokens_per_step

    instances, batch = settle(workload, batches(side.room, workload), residence)
    step, draft = step_of(batch), drafting(side, workload, layout, batch)
    used = memory_frac(side, layout, batch, batch, workload)
    busy = np.asarray(step.estimate_s) + draft.step_s
    seconds = paced(busy)
    rate = requests_per_s(workload, instances, batch, residence(batch))
    joules = np.full_like(seconds, np.nan)
    if pool.chip.spec_tdp_w is not None:
        idle_w = side.chips[:, None] * pool.chip.spec_tdp_w * DEFAULT_ENERGY.static_frac
        waiting = np.where(np.isfinite(seconds), seconds - busy, 0.0)
        joules = np.asarray(step.estimate_j) + draft.step_j + idle_w * waiting
    draft_s = np.broadcast_to(draft.step_s, seconds.shape)
    rows, columns = np.nonzero(np.broadcast_to((used <= 1.0) & np.isfinite(seconds), seconds.shape))
    return DecodeSide(
        pool=index, degrees=side.degrees.pick(rows), batch=batch[rows, columns], instances=instances[rows, columns],
        requests_per_s=rate[rows, columns], step_s=seconds[rows, columns], busy_s=busy[rows, columns], timetable=intervals is not None, draft_s=draft_s[rows, columns], joules=joules[rows, columns],
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
    amounts = step_amounts(
        side.spec,
        layout,
        side.pool.precision,
        work,
        routing_skew=calibration.routing_skew,
        tiles=calibration.tiles,
    )
    step = price_step(amounts, side.pool.chip, calibration, graph=False)
    seconds = np.asarray(step.estimate_s)
    host_s = amounts.launches * calibration.prefill_host_kernel_s + calibration.request_overhead_s
    latency = np.broadcast_to(calibration.prefill_slowdown * seconds * steps + host_s, seconds.shape)
    parts = memory_per_chip(
        side.spec,
        side.pool.precision,
        layout,
        sequences=ranks * 1.0,
        context=float(workload.input_tokens),
        step_tokens=ranks * piece,
    )
    parts |= drafter_parts(side, layout, ranks * 1.0, np.asarray(parts["kv"]), workload)
    used = np.asarray(filled_frac(parts, side.pool.chip, layout))
    draft = drafting(side, workload, layout, ranks * 1.0)
    draft_s, draft_j = (np.broadcast_to(each, seconds.shape) for each in (draft.prompt_s, draft.prompt_j))
    joules = np.asarray(step.estimate_j) if side.pool.chip.spec_tdp_w is not None else np.full_like(seconds, np.nan)
    rows, columns = np.nonzero(np.broadcast_to(used <= 1.0, seconds.shape))
    per_prompt = joules[rows, columns] * steps[0, columns] / ranks[rows, 0] + draft_j[rows, columns]
    return PrefillSide(
        pool=index, degrees=side.degrees.pick(rows), chunk=piece[0, columns], ranks=ranks[rows, 0],
        service_s=seconds[rows, columns] * steps[0, columns] + draft_s[rows, columns], latency_s=latency[rows, columns] + draft_s[rows, columns], joules=per_prompt,
        memory_frac=np.broadcast_to(used, seconds.shape)[rows, columns],
    )  # fmt: skip


def kv_handoff_bytes_per_chip(side_spec: ModelSpec, pool: Pool, degrees: Degrees, tokens: float) -> Array:
    """KV of one prompt on each chip that holds a share of it."""
    layout = degrees.layout()
    one_rank = np.asarray(kv_bytes_per_chip(side_spec, pool.precision, layout, 1.0, tokens))
    return (
        one_rank * degrees.dp_attention
    )  # kv_bytes_per_chip spreads sequences over ranks; this sequence lies on one of them
