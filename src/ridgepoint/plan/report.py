"""A plan as plain data: the JSON schema `ridgepoint.plan/1`, which the terminal, the HTML page and `serve --plan` all read.

Figures are {low, middle, high, unit, provenance}; times carry the calibration's 80 % interval, dollars that and the range of known
rents. A deployment's `serve` part is what a server needs: degrees, sequences, chunk, step interval. Fields are only ever added
under this version.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ridgepoint.cost.memory import kv_bytes_per_seq, kv_bytes_per_token
from ridgepoint.cost.shape import shape_of
from ridgepoint.cost.step import Z80
from ridgepoint.plan.boundary import pipeline_kv, rack_boundary
from ridgepoint.plan.explain import decode_layout, explain, prefill_layout
from ridgepoint.plan.hold import plan_hold
from ridgepoint.plan.layouts import RESIDENCES, residences
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.retire import retirement
from ridgepoint.plan.search import Plan, Question
from ridgepoint.plan.sweep import CHUNKS, NUM_BATCHES
from ridgepoint.plan.timetable import checked_intervals, intervals_worth_searching
from ridgepoint.units import si

SCHEMA = "ridgepoint.plan/1"

_FIGURES = {
    "tpot_s": ("s", "timed"), "draft_s": ("s", "timed"), "interval_s": ("s", "timed"), "worst_wait_s": ("s", "timed"), "ttft_s": ("s", "timed"), "ttft_p90_s": ("s", "timed"), "usd_per_mtok": ("USD", "usd"),
    "usd_in_per_mtok": ("USD", "usd"), "usd_out_per_mtok": ("USD", "usd"), "usd_per_hour": ("USD", "rent"), "watts": ("W", "plain"),
    "joules_per_token": ("J", "timed"), "requests_per_s": ("1/s", "rate"), "chips": ("chips", "exact"), "paid_chips": ("chips", "exact"), "handoff_s": ("s", "timed"),
    "prefill_util": ("frac", "plain"), "memory_frac": ("frac", "exact"),
}  # fmt: skip


def figure(low: float, middle: float, high: float, unit: str, provenance: str = "estimate") -> dict[str, Any]:
    return {"low": low, "middle": middle, "high": high, "unit": unit, "provenance": provenance}


def report(plan: Plan, *, wide: bool = False) -> dict[str, Any]:
    """Everything about a plan. `wide` adds the view beyond the choice: rack boundary, pipelines and KV, old accelerators."""
    question, choice = plan.question, plan.choice
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "question": _question(plan),
        "feasible": choice.feasible,
        "failures": [asdict(failure) for failure in choice.failures],
        "choice": deployment(question, choice.chosen),
        "runner_up": deployment(question, choice.runner_up) if choice.runner_up else None,
        "alternatives": [deployment(question, row) for row in choice.alternatives],
        "drafts": [deployment(question, row) for row in plan.drafts],
        "changes": [{"what": change.what, "deployment": deployment(question, change.row)} for change in plan.changes],
        "frontier": [deployment(question, choice.frontier.row(index)) for index in range(len(choice.frontier))],
        "explain": _explain(question, choice.chosen),
        "kv_policy": _kv_policy(question, choice.chosen),
        "assumptions": assumptions(question),
        "num_priced": choice.num_priced,
        "num_feasible": choice.num_feasible,
        "saving_frac": choice.saving_frac,
    }
    if wide:
        result["wide"] = _wide(question, choice.chosen)
    return _finite(result)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no nan: the first is a text, the second is null (unknown)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "unbounded"
    return value


def _question(plan: Plan) -> dict[str, Any]:
    question = plan.question
    shape = shape_of(question.model.spec)
    return {
        "model": {
            "name": question.model.name, "source": question.model.source, "total_params": shape.total_params, "active_params": shape.active_params,
            "kv_bytes_per_token": kv_bytes_per_token(question.model.spec, question.pools[0].precision.kv), "max_context": question.model.spec.max_context,
        },
        "pools": [_pool(pool) for pool in question.pools],
        "workload": asdict(question.workload),
        "goal": asdict(question.goal),
        "disaggregate": question.disaggregate,
        "drafter": _drafter(question),
        "intervals_s": question.intervals_s,
        "searched": _searched(question) | {"draft_tokens": [int(row["draft"]) for row in plan.drafts] or [question.workload.draft_tokens]},
    }  # fmt: skip


def _searched(question: Question) -> dict[str, Any]:
    """The dimensions of the search and their values; degrees and batches depend on the model and on what fits."""
    workload = question.workload
    stated = question.intervals_s
    intervals = intervals_worth_searching(workload, question.goal) if stated is None else checked_intervals(stated)
    return {
        "hardware": [pool.describe() for pool in question.pools],
        "memory": sorted({place.text or "main memory" for pool in question.pools for place in residences(pool.chip)}),
        "layout": "tp x dp_attention x ep x pp that divide heads, experts and layers",
        "batch": f"{NUM_BATCHES} sizes from 1 to what fits", "chunk_tokens": list(CHUNKS),
        "step_interval_s": [float(value) for value in intervals], "free_running": stated is None,
        "pools": "prompts and answers together" + (", and in separate pools" if question.disaggregate else ""),
    }  # fmt: skip


def _drafter(question: Question) -> dict[str, Any] | None:
    if not question.workload.draft_tokens:
        return None
    if question.drafter is None:
        return {"name": "ngram", "total_params": 0}
    return {"name": question.drafter.name, "total_params": shape_of(question.drafter.spec).total_params}


def _pool(pool: Pool) -> dict[str, Any]:
    low, middle, high = pool.usd_per_hour
    return {
        "hardware": pool.chip.id, "name": pool.chip.name, "launch_year": pool.chip.launch_year, "count": pool.count, "role": pool.role, "unit_chips": pool.chip.unit_chips, "share_units": pool.share_units,
        "precision": pool.precision_name, "usd_per_hour": figure(low, middle, high, "USD", "spec"), "calibration": pool.calibration.name,
        "calibration_provenance": pool.calibration.provenance,
    }  # fmt: skip


def deployment(question: Question, row: dict[str, float]) -> dict[str, Any]:
    d_pool, p_pool = question.pools[int(row["d_pool"])], question.pools[int(row["p_pool"])]
    together = row["kind"] == 0
    layout, p_layout = decode_layout(row), prefill_layout(row)
    decode = {
        "hardware": d_pool.chip.id, "precision": d_pool.precision_name, **layout.describe(), "instances": int(row["d_instances"]),
        "max_sequences": math.ceil(row["batch"]),
    }  # fmt: skip
    prefill = None
    if not together:
        prefill = {
            "hardware": p_pool.chip.id, "precision": p_pool.precision_name, **p_layout.describe(), "instances": int(row["p_instances"]),
            "chunk_tokens": math.ceil(row["chunk"]),
        }  # fmt: skip
    return {
        "mode": "together" if together else "disaggregated",
        "timetable": bool(row["timetable"]),
        "name": deployment_name(question, row),
        "decode": decode,
        "prefill": prefill,
        "serve": {
            "tp": layout.tp, "dp_attention": layout.dp_attention, "ep": layout.ep, "pp": layout.pp, "precision": d_pool.precision_name,
            "max_sequences": math.ceil(row["batch"]), "chunk_tokens": math.ceil(row["chunk"]), "sram": layout.sram, "kv_in_sram": layout.sram and layout.kv_in_sram, "step_interval_s": row["interval_s"],
            "draft_tokens": int(row["draft"]),
        },
        "figures": {name: _figure(row, name, *how) for name, how in _FIGURES.items() if not (name == "handoff_s" and together) and not (name == "draft_s" and not row["draft_s"])},
    }  # fmt: skip


def deployment_name(question: Question, row: dict[str, float]) -> str:
    """`3 x [64 gb200-nvl72: dp64 ep64]` or `prefill 3 x [...] + decode 7 x [...]`."""
    d = _side_name(question.pools[int(row["d_pool"])].chip.id, row, "d")
    if row["kind"] == 0:
        return d
    return "prefill " + _side_name(question.pools[int(row["p_pool"])].chip.id, row, "p") + " + decode " + d


def _side_name(chip: str, row: dict[str, float], side: str) -> str:
    tp, dp, ep, pp = (int(row[f"{side}_{name}"]) for name in ("tp", "dp", "ep", "pp"))
    degrees = " ".join(
        f"{name}{value}" for name, value in (("tp", tp), ("dp", dp), ("ep", ep), ("pp", pp)) if value > 1
    )
    place = RESIDENCES[int(row[f"{side}_memory"])].text
    laid = ", ".join(part for part in (degrees, place) if part)
    return f"{int(row[side + '_instances'])} x [{tp * dp * pp} {chip}{': ' if laid else ''}{laid}]"


def _figure(row: dict[str, float], name: str, unit: str, kind: str) -> dict[str, Any]:
    value = row[name]
    wide = math.exp(Z80 * row["sigma_ttft" if name.startswith("ttft") else "sigma"])
    timed = (value / wide, value * wide)
    if row["timetable"] and name in ("tpot_s", "interval_s", "worst_wait_s"):
        timed = (value, value * max(1.0, row["busy_tpot_s"] / row["tpot_s"] * wide))  # kept while the work fits into it
    ends = {
        "timed": timed,
        "rate": (value / wide, value * wide),
        "usd": (value / wide * row["usd_low_frac"], value * wide * row["usd_high_frac"]),
        "rent": (value * row["usd_low_frac"], value * row["usd_high_frac"]),
        "plain": (value, value),
        "exact": (value, value),
    }[kind]
    return figure(ends[0], value, ends[1], unit, "spec" if kind == "rent" else "estimate")


def _explain(question: Question, row: dict[str, float]) -> dict[str, Any]:
    return asdict(explain(question, row))


def _kv_policy(question: Question, row: dict[str, float]) -> dict[str, Any]:
    from ridgepoint.catalog.tiers import tiers_of

    pool, workload = question.pools[int(row["d_pool"])], question.workload
    context = workload.input_tokens + workload.written_tokens
    p_pool = question.pools[int(row["p_pool"])]
    plan = plan_hold(
        question.model.spec, p_pool.chip, prefill_layout(row), p_pool.precision, p_pool.calibration, tiers_of(pool.chip),
        context_tokens=context, reuse_prob=workload.reuse_prob, mean_pause_s=workload.mean_pause_s,
    )  # fmt: skip
    ways = []
    for way in plan.ways:
        ways.append({**asdict(way), "best_ttl_s": asdict(way.best_ttl_s) if way.best_ttl_s else None})
    usd_per_mtok = _cached_usd_per_mtok(plan, context)
    return {
        "context_tokens": context, "kv_bytes": plan.kv_bytes, "reuse_prob": plan.reuse_prob, "mean_pause_s": plan.mean_pause_s,
        "cheapest": [{"from_s": start, "way": way} for start, way in plan.cheapest], "ways": ways,
        "usd_cached_per_mtok": usd_per_mtok,
    }  # fmt: skip


def _cached_usd_per_mtok(plan: Any, context: int) -> dict[str, Any]:
    """Keeping and returning a million cached tokens over one mean pause, by the way that is cheapest for that pause."""
    pause = plan.mean_pause_s or 0.0
    best = [way for start, way in plan.cheapest if start <= pause][-1]
    way = next(w for w in plan.ways if w.id == best)
    scale = 1e6 / context

    def total(end: str) -> float:
        held = getattr(way.estimate_rate_usd_per_s, end) * pause
        return float((getattr(way.estimate_write_usd, end) + held + getattr(way.estimate_resume_usd, end)) * scale)

    return {**figure(total("low"), total("middle"), total("high"), "USD"), "way": way.id}


def _wide(question: Question, row: dict[str, float]) -> dict[str, Any]:
    pool, workload = question.pools[int(row["d_pool"])], question.workload
    spec, context = question.model.spec, workload.decode_context
    batch = max(1.0, row["batch"])
    crossings = [rack_boundary(spec, pool, batch=b, context=context) for b in (batch, 4 * batch, 16 * batch)]
    newest = max(question.pools, key=lambda p: p.chip.launch_year or 0)
    old = [
        p
        for p in question.pools
        if p.role != "decode" and (p.chip.launch_year or 9999) <= (newest.chip.launch_year or 0) - 3
    ]
    return {
        "rack_boundary": [{**asdict(item), "winner": item.winner} for item in crossings if item is not None],
        "pipeline_kv": [
            asdict(item) for item in pipeline_kv(spec, pool, decode_layout(row), stage_batch=batch, context=context)
        ],
        "retirement": [asdict(retirement(question, p, newest)) for p in old],
        "kv_bytes_per_sequence": float(kv_bytes_per_seq(spec, context, pool.precision.kv)),
    }


def _drafted_by(question: Question) -> str:
    if question.drafter is None:
        return "drafts are looked up in the text so far: no weights, no passes"
    size = si(shape_of(question.drafter.spec).total_params)
    ends = ", embeddings and head the model's own" if question.drafter.shares_ends else ""
    return (
        f"{question.drafter.name} drafts ({size} parameters{ends}): its passes, weights, cache and prompts are paid for"
    )


def _bought(pool: Pool) -> str:
    if pool.share_units:
        return f"{pool.chip.id}: paid by the chip, others sharing its nodes"
    if pool.chip.unit_chips is None:
        return f"{pool.chip.id}: paid by the chip, because how many are sold together is unknown"
    most = f", at most the {pool.count} there are" if pool.count else ""
    many = (
        "by the chip" if pool.unit == 1 else f"in units of {pool.unit} chips, idle ones included (their power is not)"
    )
    return f"{pool.chip.id}: paid {many}{most}"


def assumptions(question: Question) -> list[str]:
    """What the figures rest on, in sentences."""
    workload, goal = question.workload, question.goal
    found = [
        f"steps: {pool.chip.id} by calibration {pool.calibration.name} ({pool.calibration.provenance}), "
        f"log-sd {pool.calibration.uncertainty:.2f}"
        for pool in question.pools
    ]
    found.append(
        "dollars: rent of the chips alone, at the geometric middle of the catalogue's range; nothing for network, storage or people"
    )
    found += [_bought(pool) for pool in question.pools]
    found.append(
        f"requests: in the mean: {workload.input_tokens} in, {workload.written_tokens} out; arrivals random, prompts of unlike lengths (M/G/1, cv2 1)"
    )
    if goal.limits():
        found.append(f"limits on time and dollars are kept by the estimate with probability {goal.confidence:g}")
    if workload.draft_tokens:
        found.append(
            f"speculation: {workload.draft_tokens} drafted tokens, each accepted with probability {workload.acceptance:g} "
            f"= {workload.tokens_per_step:.2f} tokens a step; " + _drafted_by(question)
        )
    for pool in question.pools:
        for links, spec in (
            ("beyond one scale-up domain", pool.chip.spec_scaleout_bytes_per_s),
            ("over several chips", pool.chip.spec_scaleup_bytes_per_s),
        ):
            if spec is None:
                found.append(
                    f"{pool.chip.id}: layouts {links} were not considered, because the speed of those links is unknown"
                )
    for pool in question.pools:
        if len(residences(pool.chip)) == 1 and pool.chip.spec_sram_bytes and not residences(pool.chip)[0].sram:
            found.append(
                f"{pool.chip.id}: layouts in on-chip SRAM were not considered, because the speed of its SRAM is unknown"
            )
    found.append("memory: every sequence at its mean context, 8 % of each chip kept for the runtime")
    return found
