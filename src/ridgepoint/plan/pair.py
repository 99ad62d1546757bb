"""Match a prefill pool to a decode pool: how many instances of each, what the hand-off of KV costs, what a request then sees.

Both sides are first thinned to those no other row of the side beats (every metric of a pair grows with each of them), then
every pair is priced. A stated number of users is shared between waiting for a first token and decoding. The hand-off crosses the
slower of the two sides' networks, each chip sending its own share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.energy import DEFAULT_ENERGY
from ridgepoint.cost.queueing import worst_wait_s
from ridgepoint.errors import CatalogError
from ridgepoint.plan.layouts import Degrees
from ridgepoint.plan.points import Points, flatten, pareto
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.purchase import paid_by_two, paid_chips
from ridgepoint.plan.queue import MAX_UTILISATION, mean_wait, wait_quantile
from ridgepoint.plan.sides import DecodeSide, PrefillSide, kv_handoff_bytes_per_chip
from ridgepoint.plan.workload import Goal, Workload

Array = NDArray[np.float64]

UTILISATIONS = (0.5, 0.7, 0.85)
MAX_SIDE = 160  # rows of a side that take part in pairing


def _thin_decode(side: DecodeSide, pool: Pool, workload: Workload, goal: Goal, slack: float) -> NDArray[np.intp]:
    chips = side.degrees.chips * side.instances
    paid = paid_chips(side.instances, side.degrees.chips, pool.unit, pool.count, filled=workload.is_open)
    rate = side.requests_per_s
    values = [side.step_s, paid / rate * pool.usd_per_hour[1], chips]
    if not np.isnan(side.joules).any():
        values.append(side.joules * side.instances / side.step_s / rate)
    keep = np.arange(len(side.step_s))
    if goal.tpot_s is not None:
        allowed = side.step_s / workload.tokens_per_step <= goal.tpot_s * slack
        if allowed.any():
            keep = keep[allowed]
    best = keep[pareto([value[keep] for value in values])]
    return _spread(best, side.step_s)


def _spread(rows: NDArray[np.intp], by: Array) -> NDArray[np.intp]:
    """At most MAX_SIDE rows, evenly over the ranking by `by`."""
    if len(rows) <= MAX_SIDE:
        return rows
    ordered = rows[np.argsort(by[rows], kind="stable")]
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, MAX_SIDE).astype(np.intp))]


def _thin_prefill(side: PrefillSide, goal: Goal) -> NDArray[np.intp]:
    chips = side.degrees.chips
    per_prompt = chips * side.service_s / side.ranks
    values = [side.service_s, per_prompt, chips]
    if not np.isnan(side.joules).any():
        values.append(side.joules)
    keep = np.arange(len(chips))
    if goal.ttft_s is not None and (side.service_s <= goal.ttft_s).any():
        keep = keep[side.service_s <= goal.ttft_s]
    return _spread(keep[pareto([value[keep] for value in values])], side.service_s)


def network_bytes_per_s(prefill: Pool, decode: Pool) -> float:
    """One-way bytes/s per chip between the pools: the slower side's scale-out; scale-up only inside one domain of like chips."""
    rates = [pool.chip.spec_scaleout_bytes_per_s for pool in (prefill, decode)]
    if any(rate is None for rate in rates):
        missing = (prefill if rates[0] is None else decode).chip
        raise CatalogError(
            f"{missing.id}: spec_scaleout_bytes_per_s is unknown, and handing KV from prefill to decode needs it",
            hint="state scaleout_bytes_per_s in a hardware TOML file",
        )
    return float(min(rate for rate in rates if rate is not None))


def pair_sides(
    spec: ModelSpec, prefill: PrefillSide, decode: DecodeSide, pools: tuple[Pool, ...], workload: Workload, goal: Goal
) -> Points:
    """Rows of kind 1 for every kept (prefill, decode, target utilisation)."""
    p_pool, d_pool = pools[prefill.pool], pools[decode.pool]
    sigma = d_pool.calibration.uncertainty  # of time per token and, decode being most of them, of dollars
    sigma_ttft = max(p_pool.calibration.ttft_uncertainty, d_pool.calibration.ttft_uncertainty)
    d_rows, p_rows = _thin_decode(decode, d_pool, workload, goal, 1.0), _thin_prefill(prefill, goal)
    d, p = decode.degrees.pick(d_rows), prefill.degrees.pick(p_rows)

    def on_d(values: Array) -> Array:
        return values[d_rows][:, None, None]

    def on_p(values: Array) -> Array:
        return values[p_rows][None, :, None]

    written, per_token = float(workload.written_tokens), workload.tokens_per_step
    step, batch, d_count = on_d(decode.step_s), on_d(decode.batch), on_d(decode.instances)
    rate = on_d(decode.requests_per_s)
    service, ranks = on_p(prefill.service_s), on_p(prefill.ranks)
    handoff = _handoff(spec, p_pool, d_pool, d, p, workload)
    unhurried = on_p(prefill.latency_s) + handoff + d_pool.calibration.boarding_steps * step
    if workload.users is not None:
        # Whose prompt is being computed holds no seat of the decode pool, and users / rate is the whole cycle.
        decoding = 1.0 / (1.0 + unhurried * rate / workload.users)
        rate, d_count = rate * decoding, np.maximum(np.ceil(d_count * decoding - 1e-9), 1.0)
    prompts = rate / workload.rollouts
    target = np.array(UTILISATIONS)[None, None, :]
    p_count = np.maximum(np.ceil(prompts * service / ranks / target - 1e-9), 1.0)
    rho = prompts * service / (ranks * p_count)
    wait = mean_wait(rho, service)
    ttft = wait + unhurried
    ttft_p90 = wait_quantile(rho, service, 0.9) + unhurried + 0.5 * step
    if workload.users is not None:
        rate = 1.0 / (1.0 / rate + wait / workload.users)
    p_chips, d_chips = p_count * p.chips[None, :, None], d_count * d.chips[:, None, None]
    p_rent, d_rent = p_pool.usd_per_hour, d_pool.usd_per_hour
    one_pool = p_pool.chip.id == d_pool.chip.id and p_pool.count == d_pool.count  # the same chips, whatever the formats
    d_has, p_has = (d_count, d.chips[:, None, None]), (p_count, p.chips[None, :, None])
    if workload.is_open:
        d_paid, p_paid = (
            paid_chips(has[0], has[1], pool.unit, pool.count, filled=True)
            for has, pool in ((d_has, d_pool), (p_has, p_pool))
        )
    elif one_pool:
        d_paid, p_paid = paid_by_two(d_has, p_has, d_pool.unit, d_pool.count)
    else:
        d_paid, p_paid = (
            paid_chips(has[0], has[1], pool.unit, pool.count) for has, pool in ((d_has, d_pool), (p_has, p_pool))
        )
    dollars = [p_paid * p_rent[i] + d_paid * d_rent[i] for i in range(3)]
    d_watts = on_d(decode.joules) / step * d_count
    p_idle = 0.0 if p_pool.chip.spec_tdp_w is None else p_pool.chip.spec_tdp_w * DEFAULT_ENERGY.static_frac
    p_watts = on_p(prefill.joules) * prompts + p_chips * p_idle * (1 - rho)
    watts = d_watts + p_watts
    p_have, d_have = float(p_pool.count or np.inf), float(d_pool.count or np.inf)
    supply = (p_chips + d_chips) / p_have if one_pool else np.maximum(p_chips / p_have, d_chips / d_have)
    keep = rho < MAX_UTILISATION
    shape = np.broadcast_shapes(rate.shape, p_count.shape)
    return flatten(
        shape, keep, kind=1.0, d_pool=float(decode.pool), d_tp=d.tp[:, None, None], d_dp=d.dp_attention[:, None, None], d_ep=d.ep[:, None, None],
        d_pp=d.pp[:, None, None], d_memory=float(d.residence.code), p_memory=float(p.residence.code), d_instances=d_count, p_pool=float(prefill.pool), p_tp=p.tp[None, :, None], p_dp=p.dp_attention[None, :, None],
        p_ep=p.ep[None, :, None], p_pp=p.pp[None, :, None], p_instances=p_count, batch=batch, chunk=on_p(prefill.chunk),
        draft=float(workload.draft_tokens), chips=p_chips + d_chips, d_chips=d_chips, p_chips=p_chips, paid_chips=p_paid + d_paid, d_paid=d_paid, p_paid=p_paid, requests_per_s=rate, step_s=step, draft_s=on_d(decode.draft_s),
        interval_s=step, worst_wait_s=worst_wait_s(1.0) * step, timetable=float(decode.timetable), busy_tpot_s=on_d(decode.busy_s) / per_token,
        tpot_s=step / per_token, ttft_s=ttft, ttft_p90_s=ttft_p90, usd_per_hour=dollars[1], usd_low_frac=dollars[0] / dollars[1],
        usd_high_frac=dollars[2] / dollars[1], usd_per_mtok=dollars[1] / 3600 / rate / written * 1e6,
        usd_in_per_mtok=p_paid * p_rent[1] / 3600 / rate / workload.new_input_tokens * 1e6,
        usd_out_per_mtok=d_paid * d_rent[1] / 3600 / rate / written * 1e6, watts=watts, joules_per_token=watts / (rate * written),
        prefill_util=rho, memory_frac=np.maximum(on_d(decode.memory_frac), on_p(prefill.memory_frac)), handoff_s=handoff, supply=supply, sigma=sigma, sigma_ttft=sigma_ttft,
    )  # fmt: skip


def _handoff(spec: ModelSpec, p_pool: Pool, d_pool: Pool, d: Degrees, p: Degrees, workload: Workload) -> Array:
    """Seconds to move one prompt's new KV: the larger per-chip share of the two sides sets the pace."""
    tokens = float(workload.input_tokens)
    efficiency = min(p_pool.calibration.link_efficiency, d_pool.calibration.link_efficiency)
    speed = network_bytes_per_s(p_pool, d_pool) * efficiency
    sent = kv_handoff_bytes_per_chip(spec, d_pool, p, tokens)[None, :, None]
    received = kv_handoff_bytes_per_chip(spec, d_pool, d, tokens)[:, None, None]
    return np.maximum(sent, received) / speed
