"""What a drafter costs: its own weights and cache in memory, and on every step its own passes before the verification.

A drafter of k tokens runs k small decode steps one after another on the chips of each attention rank, tensor-parallel as they are, and
prefills every prompt too. Under a pipeline it lives on one stage, which drafts for every micro-batch in turn. A model's own
multi-token-prediction module is a drafter of one layer that uses the model's embeddings and head. Knows no acceptance: see `speculation`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num, largest, smallest
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.energy import DEFAULT_ENERGY
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_chip, weight_bytes_per_chip
from ridgepoint.cost.shape import shape_of
from ridgepoint.cost.step import StepCost, step_cost


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """A model that drafts. `shares_ends`: embeddings and head are the verifier's, read for every draft but stored once."""

    name: str
    spec: ModelSpec
    shares_ends: bool = False


def own_module(name: str, spec: ModelSpec) -> Drafter:
    """The multi-token-prediction module of a model: one more layer of its last kind, on its own embeddings and head."""
    return Drafter(name=f"{name}'s own module", spec=replace(spec, layers=(spec.layers[-1],)), shares_ends=True)


@dataclass(frozen=True)
class DraftCost:
    """Of one step of the whole instance: seconds before verification begins, and joules of all chips (nan where unknown)."""

    estimate_s: Num
    estimate_j: Num


def draft_layout(layout: Layout) -> Layout:
    """One attention rank's chips."""
    return Layout(tp=layout.tp, domain_chips=layout.domain_chips, sram=layout.sram, kv_in_sram=layout.kv_in_sram)


def draft_weight_bytes_per_chip(drafter: Drafter, precision: Precision, layout: Layout) -> Num:
    held = weight_bytes_per_chip(drafter.spec, precision, draft_layout(layout))
    if not drafter.shares_ends:
        return held
    shape = shape_of(drafter.spec)
    ends = shape.embedding_params + (0 if shape.tied else shape.head_params)
    return held - ends * bytes_per_value(precision.head) / layout.tp


def draft_kv_bytes_per_chip(
    drafter: Drafter, precision: Precision, layout: Layout, sequences: Num, context: Num
) -> Num:
    """Of `sequences` over the whole instance: the stage that drafts keeps the drafter's cache of all micro-batches."""
    per_rank = sequences / layout.dp_attention
    return kv_bytes_per_chip(drafter.spec, precision, draft_layout(layout), per_rank, context)


def draft_step(
    drafter: Drafter, hardware: Accelerator, layout: Layout, precision: Precision, calibration: Calibration,
    *, sequences: Num, context: Num, draft_tokens: float,
) -> DraftCost:  # fmt: skip
    """`draft_tokens` passes over every sequence of the instance; the launch of the step itself is the verification's."""
    ranks = layout.dp_attention * layout.pp
    rows = largest(sequences / ranks, smallest(sequences, 1.0))
    one = _pass(drafter, hardware, layout, precision, calibration, StepBatch.decode(rows, context))
    return _on_one_stage(one, hardware, layout, draft_tokens * layout.pp)


def draft_prefill(
    drafter: Drafter, hardware: Accelerator, layout: Layout, precision: Precision, calibration: Calibration,
    *, new: Num, cached: Num,
) -> DraftCost:  # fmt: skip
    """One prompt of `new` tokens through the drafter, on its rank."""
    one = _pass(drafter, hardware, layout, precision, calibration, StepBatch.prefill(1.0, new, cached))
    return DraftCost(one.estimate_s, _joules(one))


def _pass(
    drafter: Drafter, hardware: Accelerator, layout: Layout, precision: Precision, calibration: Calibration, batch: StepBatch
) -> StepCost:  # fmt: skip
    within = calibration.adjusted(step_overhead_s=0.0)
    return step_cost(drafter.spec, hardware, draft_layout(layout), precision, batch, within)


def _joules(cost: StepCost) -> Num:
    return float("nan") if cost.hardware.spec_tdp_w is None else cost.estimate_j


def _on_one_stage(one: StepCost, hardware: Accelerator, layout: Layout, passes: Num) -> DraftCost:
    """All ranks draft at once; chips of other stages wait and burn their static share."""
    seconds = one.estimate_s * passes
    waiting = layout.chips - layout.stage_chips
    idle_w = 0.0 if hardware.spec_tdp_w is None else hardware.spec_tdp_w * DEFAULT_ENERGY.static_frac
    return DraftCost(seconds, _joules(one) * layout.dp_attention * passes + waiting * idle_w * seconds)
