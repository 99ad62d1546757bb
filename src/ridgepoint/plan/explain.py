"""Why the chosen deployment costs what it costs: which roof binds at each batch, where the ridge lies, what each term takes,
and where the next dollar should go. Every figure is the cost model asked again at nearby points; nothing is fitted or stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.drafting import draft_kv_bytes_per_chip, draft_weight_bytes_per_chip
from ridgepoint.cost.formats import bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_usable_bytes, max_sequences, memory_per_chip, usable_bytes
from ridgepoint.cost.shape import shape_of
from ridgepoint.cost.step import ROOFS, StepCost, memory_speeds, step_cost
from ridgepoint.plan.layouts import RESIDENCES
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.search import Question
from ridgepoint.plan.workload import Workload

CURVE_POINTS = 33
ONE_CHIP = Layout()


@dataclass(frozen=True, kw_only=True)
class BatchPoint:
    """One batch of the chosen decode layout: seconds by roof, what binds, and the cost of a million written tokens."""

    batch: float
    estimate_step_s: float
    roof_s: dict[str, float]
    binds: str
    estimate_usd_per_mtok: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """Relative fall of the cost of a written token per relative rise of a resource: 0.4 means +10 % buys about -4 %."""

    resource: str
    value: float


@dataclass(frozen=True, kw_only=True)
class RoofPoint:
    """Where a phase sits on the roofline: FLOP per byte of memory traffic, and FLOP/s per chip reached of what the roof allows."""

    phase: str
    chip: str
    flop_per_byte: float
    estimate_flops_per_s: float
    spec_roof_flops_per_s: float
    spec_peak_flops_per_s: float
    spec_memory_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Of one deployment. `ridge_formula` is B* from spec figures; `ridge_batch` is where the model's compute and weight times
    cross on this layout (None: they do not before memory is full or KV outweighs both). `memory_usable_bytes` is of the memory
    the weights lie in, `kv_memory_usable_bytes` of the cache's (the same one, unless the layout splits them)."""

    binds: str
    roof_frac: dict[str, float]
    term_s: dict[str, float]
    ridge_formula: float
    ridge_batch: float | None
    curve: tuple[BatchPoint, ...]
    elasticities: tuple[Elasticity, ...]
    roofline: tuple[RoofPoint, ...]
    memory_bytes: dict[str, float]
    memory_usable_bytes: float
    kv_memory_usable_bytes: float
    prefill_memory_bytes: dict[str, float]
    prefill_memory_usable_bytes: float


def _layout(row: dict[str, float], side: str) -> Layout:
    tp, dp, ep, pp, memory = (int(row[f"{side}_{name}"]) for name in ("tp", "dp", "ep", "pp", "memory"))
    place = RESIDENCES[memory]
    return Layout(tp=tp, dp_attention=dp, ep=ep, pp=pp, sram=place.sram, kv_in_sram=place.kv_in_sram)


def decode_layout(row: dict[str, float]) -> Layout:
    return _layout(row, "d")


def prefill_layout(row: dict[str, float]) -> Layout:
    if row["kind"] == 0:
        return decode_layout(row)
    return _layout(row, "p")


def explain(question: Question, row: dict[str, float]) -> Explanation:
    spec, workload = question.model.spec, question.workload
    pool, layout = question.pools[int(row["d_pool"])], decode_layout(row)
    step = _decode(spec, pool, layout, workload, row["batch"])
    prefill_pool, p_layout = question.pools[int(row["p_pool"])], prefill_layout(row)
    prefill = _prefill(
        spec,
        prefill_pool,
        p_layout,
        workload,
        row["chunk"] if row["kind"] else row["chunk"] / (p_layout.dp_attention * p_layout.pp),
    )
    curve = _curve(spec, pool, layout, workload, paid=row["d_paid"] / row["d_instances"])
    seconds = float(step.estimate_s)
    return Explanation(
        binds=str(step.binds),
        roof_frac={name: float(step.roof_s[name]) / seconds for name in ROOFS},
        term_s={term.name: float(term.seconds) for term in step.terms}
        | ({"drafter": row["draft_s"]} if row["draft_s"] else {}),
        ridge_formula=ridge_batch_formula(spec, pool, layout),
        ridge_batch=_crossing(curve),
        curve=curve,
        elasticities=_elasticities(spec, pool, layout, workload, row),
        roofline=(_roof_point("decode", pool, step), _roof_point("prefill", prefill_pool, prefill)),
        memory_bytes=_memory(spec, pool, layout, workload, row["batch"], row["batch"])
        | _drafter_memory(question, pool, layout, row["batch"]),
        memory_usable_bytes=usable_bytes(pool.chip, layout),
        kv_memory_usable_bytes=kv_usable_bytes(pool.chip, layout),
        prefill_memory_bytes=_memory(
            spec, prefill_pool, p_layout, workload, p_layout.dp_attention * p_layout.pp, row["chunk"]
        )
        if row["kind"]
        else {},
        prefill_memory_usable_bytes=usable_bytes(prefill_pool.chip, p_layout),
    )


def ridge_batch_formula(spec: ModelSpec, pool: Pool, layout: Layout = ONE_CHIP) -> float:
    """B* = (FLOP/s / B/s) x bytes per weight / 2 x N_total / N_active, from spec figures of the memory the weights lie in."""
    ridge = pool.chip.flops_per_s(_matmul_type(pool)) / memory_speeds(pool.chip, layout)[0]
    return ridge * bytes_per_value(pool.precision.experts) / 2 * shape_of(spec).sparsity


def _matmul_type(pool: Pool) -> str:
    from ridgepoint.cost.formats import matmul_type

    return matmul_type(pool.precision.experts, pool.precision.activations)


def _decode(spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, batch: float | np.ndarray) -> StepCost:
    new = 1.0 + workload.draft_tokens
    group = Group(count=batch, new=new, cached=workload.decode_context, logits=new)
    return step_cost(spec, pool.chip, layout, pool.precision, StepBatch(groups=(group,)), pool.calibration)


def _prefill(spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, piece: float) -> StepCost:
    ranks = float(layout.dp_attention * layout.pp)
    cached = workload.cached_input_tokens + 0.5 * max(0.0, workload.new_input_tokens - piece)
    group = Group(count=ranks, new=max(1.0, piece), cached=cached, logits=1.0)
    return step_cost(spec, pool.chip, layout, pool.precision, StepBatch(groups=(group,)), pool.calibration)


def _curve(spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, *, paid: float) -> tuple[BatchPoint, ...]:
    """Decode alone, `paid` chips to an instance, over batches from one to eight times what fits (to show the ridge where memory ends first)."""
    room = float(
        max_sequences(spec, pool.precision, layout, pool.chip, context=float(workload.decode_context), step_tokens=1.0)
    )
    top = max(64.0, 4 * room, 4 * ridge_batch_formula(spec, pool, layout))
    batch = np.unique(np.round(np.geomspace(1.0, top, CURVE_POINTS)))
    step = _decode(spec, pool, layout, workload, batch)
    seconds = np.broadcast_to(step.estimate_s, batch.shape)
    roofs = {name: np.broadcast_to(step.roof_s[name], batch.shape) for name in ROOFS}
    usd = paid * pool.usd_per_hour[1] / 3600 * seconds / (batch * workload.tokens_per_step) * 1e6
    binds = np.broadcast_to(step.binds, batch.shape)
    return tuple(
        BatchPoint(
            batch=float(batch[i]), estimate_step_s=float(seconds[i]), roof_s={name: float(roofs[name][i]) for name in ROOFS},
            binds=str(binds[i]), estimate_usd_per_mtok=float(usd[i]), fits=bool(batch[i] <= room),
        )
        for i in range(len(batch))
    )  # fmt: skip


def _crossing(curve: Sequence[BatchPoint]) -> float | None:
    """First batch at which compute takes as long as reading weights, interpolated in the logarithms."""
    for left, right in pairwise(curve):
        a = np.log(max(left.roof_s["compute"], 1e-30) / max(left.roof_s["weights"], 1e-30))
        b = np.log(max(right.roof_s["compute"], 1e-30) / max(right.roof_s["weights"], 1e-30))
        if a < 0 <= b:
            share = -a / (b - a)
            return float(np.exp(np.log(left.batch) + share * (np.log(right.batch) - np.log(left.batch))))
    return None


def _elasticities(
    spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, row: dict[str, float]
) -> tuple[Elasticity, ...]:
    """What one per cent more of each resource takes off a decode step; memory capacity counts through the larger batch."""
    base = float(_decode(spec, pool, layout, workload, row["batch"]).estimate_s)
    chip, up = pool.chip, 1.10

    def change(other: Pool) -> float:
        seconds = float(_decode(spec, other, layout, workload, row["batch"]).estimate_s)
        return float(np.log(base / seconds) / np.log(up))

    flops = replace(pool, chip=replace(chip, spec_flops_per_s={k: v * up for k, v in chip.spec_flops_per_s.items()}))
    found = [Elasticity(resource="FLOP/s", value=change(flops))]
    memories = [("memory bandwidth", "spec_memory_bytes_per_s")] if not layout.sram or layout.split_memory else []
    memories += [("SRAM bandwidth", "spec_sram_bytes_per_s")] if layout.sram else []
    for name, field in (
        *memories,
        ("scale-up links", "spec_scaleup_bytes_per_s"),
        ("scale-out links", "spec_scaleout_bytes_per_s"),
    ):
        value = getattr(chip, field)
        if value:
            found.append(
                Elasticity(resource=name, value=change(replace(pool, chip=replace(chip, **{field: value * up}))))
            )
    found.append(
        Elasticity(
            resource="software (less fixed overhead per step, layer, kernel, collective)",
            value=_overhead_elasticity(spec, pool, layout, workload, row, base),
        )
    )
    found.append(
        Elasticity(
            resource="memory capacity (a larger batch)", value=_capacity_elasticity(spec, pool, layout, workload, row)
        )
    )
    return tuple(sorted(found, key=lambda item: -item.value))


def _overhead_elasticity(
    spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, row: dict[str, float], base: float
) -> float:
    step = _decode(spec, pool, layout, workload, row["batch"])
    return float(step.roof_s["overhead"]) / base


def _capacity_elasticity(
    spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, row: dict[str, float]
) -> float:
    """Only where memory is what limits the batch; elsewhere more of it buys nothing."""
    if row["memory_frac"] < 0.9:
        return 0.0
    up = 1.10
    if layout.sram and layout.kv_in_sram:
        bigger = replace(pool.chip, spec_sram_bytes=(pool.chip.spec_sram_bytes or 0.0) * up)
    else:
        bigger = replace(pool.chip, spec_memory_bytes=(pool.chip.spec_memory_bytes or 0.0) * up)
    context = float(workload.decode_context)
    room = [
        float(max_sequences(spec, pool.precision, layout, chip, context=context, step_tokens=1.0))
        for chip in (pool.chip, bigger)
    ]
    batch = row["batch"] * room[1] / max(room[0], 1.0)
    cost = [float(_decode(spec, pool, layout, workload, b).estimate_s) / b for b in (row["batch"], batch)]
    return float(np.log(cost[0] / cost[1]) / np.log(up))


def _roof_point(phase: str, pool: Pool, step: StepCost) -> RoofPoint:
    flops, moved = float(step.flops), float(step.memory_bytes)
    peak = pool.chip.flops_per_s(_matmul_type(pool))
    bandwidth = memory_speeds(pool.chip, step.layout)[0]
    intensity = flops / moved
    return RoofPoint(
        phase=phase, chip=pool.chip.id, flop_per_byte=intensity, estimate_flops_per_s=flops / float(step.estimate_s),
        spec_roof_flops_per_s=min(peak, intensity * bandwidth), spec_peak_flops_per_s=peak, spec_memory_bytes_per_s=bandwidth,
    )  # fmt: skip


def _drafter_memory(question: Question, pool: Pool, layout: Layout, sequences: float) -> dict[str, float]:
    """Its weights and its cache together."""
    if question.drafter is None:
        return {}
    context = float(question.workload.decode_context)
    weights = draft_weight_bytes_per_chip(question.drafter, pool.precision, layout)
    return {
        "drafter": float(
            weights + draft_kv_bytes_per_chip(question.drafter, pool.precision, layout, sequences, context)
        )
    }


def _memory(
    spec: ModelSpec, pool: Pool, layout: Layout, workload: Workload, sequences: float, step_tokens: float
) -> dict[str, float]:
    parts = memory_per_chip(
        spec,
        pool.precision,
        layout,
        sequences=sequences,
        context=float(workload.decode_context),
        step_tokens=step_tokens,
    )
    return {name: float(value) for name, value in parts.items()}
