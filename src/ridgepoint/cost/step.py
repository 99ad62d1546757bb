"""The step law: seconds, joules and dollars of one step of a model on chips, term by term.

`step_cost(spec, hardware, layout, precision, batch, calibration) -> StepCost`

Every kernel class of every layer kind is a term with its per-chip FLOPs and bytes; its time is the smooth maximum of its
compute and memory roofs at calibrated efficiency. Terms of one step run one after another, so they add; link time and
explicit overheads (per step, layer, collective, sequence) add too. A pipeline of pp stages keeps pp micro-batches in flight:
a step is the time in which every sequence of the batch advances, so it does not shrink with pp. All inputs may be arrays.
Knows no queue, no arrival, no engine; `floor_s` is the bare physics no measurement may beat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost import links
from ridgepoint.cost.arrays import Num, all_true, is_scalar, largest, smallest, soft_max
from ridgepoint.cost.attention import cache_read_bytes, cache_write_bytes, mixer_flops
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.energy import DEFAULT_ENERGY, EnergyModel, step_joules
from ridgepoint.cost.formats import Precision, bytes_per_value, matmul_type
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_replication
from ridgepoint.cost.routing import busiest_rank, distinct_experts
from ridgepoint.cost.shape import LayerKind, shape_of

ROOFS = ("compute", "weights", "kv", "links", "overhead")
Z80 = 1.2815515655446004  # the 80 % interval's ends in standard deviations


@dataclass(frozen=True)
class Term:
    """One kernel class, summed over its layers: per-chip amounts of the busiest chip, and seconds."""

    name: str
    flops: Num
    flop_type: str
    weight_bytes: Num
    kv_bytes: Num
    other_bytes: Num
    link_bytes: Num
    seconds: Num
    compute_s: Num
    memory_s: Num


@dataclass(frozen=True)
class StepCost:
    """Estimate of one step. Seconds and amounts broadcast over the inputs' arrays.

    `estimate_s` lies in [`estimate_low_s`, `estimate_high_s`] with 80 % probability; `floor_s` is spec_ physics alone.
    `roof_s` splits the seconds by what sets them (`ROOFS`), `terms` by kernel class. Joules, watts and dollars need facts that
    may be unknown (TDP, rent): asking for them raises the error that names the fact.
    """

    hardware: Accelerator
    layout: Layout
    calibration: Calibration
    energy: EnergyModel
    tokens: Num
    sequences: Num
    estimate_s: Num
    floor_s: Num
    terms: tuple[Term, ...]
    roof_s: dict[str, Num] = field(default_factory=dict)

    @property
    def seconds(self) -> Num:
        return self.estimate_s

    @property
    def estimate_low_s(self) -> Num:
        return largest(self.floor_s, self.estimate_s * math.exp(-Z80 * self.calibration.uncertainty))

    @property
    def estimate_high_s(self) -> Num:
        return self.estimate_s * math.exp(Z80 * self.calibration.uncertainty)

    @property
    def binds(self) -> Num:
        """Name of the roof with the largest share of the seconds (an array of names for array inputs)."""
        if all(is_scalar(value) for value in self.roof_s.values()):
            return max(self.roof_s, key=lambda name: float(self.roof_s[name]))
        stacked = np.stack(np.broadcast_arrays(*[self.roof_s[name] for name in ROOFS]))
        return np.array(ROOFS)[stacked.argmax(axis=0)]

    @property
    def flops(self) -> Num:
        """Per-chip FLOPs."""
        return sum((term.flops for term in self.terms), 0.0)

    @property
    def memory_bytes(self) -> Num:
        """Per-chip bytes read and written in memory."""
        return sum((term.weight_bytes + term.kv_bytes + term.other_bytes for term in self.terms), 0.0)

    @property
    def weight_bytes(self) -> Num:
        return sum((term.weight_bytes for term in self.terms), 0.0)

    @property
    def kv_bytes(self) -> Num:
        return sum((term.kv_bytes for term in self.terms), 0.0)

    @property
    def link_bytes(self) -> Num:
        """Bytes each chip sends."""
        return sum((term.link_bytes for term in self.terms), 0.0)

    @property
    def estimate_j(self) -> Num:
        """Joules of all chips of the instance for this step."""
        chips = self.layout.chips
        by_type: dict[str, Num] = {}
        for term in self.terms:
            if term.flop_type:
                by_type[term.flop_type] = by_type.get(term.flop_type, 0.0) + term.flops * chips
        return step_joules(
            self.hardware, self.energy, chips=chips, seconds=self.estimate_s, flops_by_type=by_type,
            memory_bytes=self.memory_bytes * chips, link_bytes=self.link_bytes * chips, sram=self.layout.sram,
        )  # fmt: skip

    @property
    def estimate_w(self) -> Num:
        """Mean power of all chips during the step."""
        return self.estimate_j / self.estimate_s

    @property
    def estimate_usd(self) -> Num:
        """Rent of all chips for the step, at the geometric middle of the known rents."""
        return self.layout.chips * self.estimate_s * self.hardware.need("usd_per_hour", "a cost in dollars") / 3600.0

    @property
    def utilisation(self) -> dict[str, Num]:
        """Fraction of the floor reached: how close the step is to bare physics, overall."""
        return {"of_floor": self.floor_s / self.estimate_s}


def _rows(tokens: Num, ranks: Num) -> Num:
    """Tokens on the busiest of `ranks` ranks: an even share, but a token cannot be split."""
    return largest(tokens / ranks, smallest(tokens, 1.0))


class _Pricer:
    """Turns amounts into terms for one (hardware, calibration, layout)."""

    def __init__(self, hardware: Accelerator, layout: Layout, precision: Precision, calibration: Calibration) -> None:
        self.hardware, self.calibration = hardware, calibration
        if layout.sram:
            memory = hardware.need("spec_sram_bytes_per_s", "an SRAM-resident layout")
        else:
            memory = hardware.need("spec_memory_bytes_per_s", "the time of a step")
        self.memory_bytes_per_s = memory * calibration.memory_efficiency
        self.peak_memory = memory
        self.types = {
            name: hardware.compute_type(
                matmul_type(
                    getattr(precision, name), getattr(precision, "attention" if name == "kv" else "activations")
                )
            )
            for name in ("weights", "experts")
        }
        self.types["head"] = hardware.compute_type(matmul_type(precision.head, precision.head))
        self.types["attention"] = hardware.compute_type(matmul_type(precision.attention, precision.attention))
        self.terms: list[Term] = []
        self.floor_flop_s: Num = 0.0
        self.floor_bytes: Num = 0.0

    def kernel(
        self, name: str, part: str, count: int, flops: Num, weight_bytes: Num, kv_bytes: Num, other_bytes: Num
    ) -> None:
        """`count` kernels of these per-kernel, per-chip amounts."""
        kind = self.types[part]
        peak = self.hardware.spec_flops_per_s[kind]
        efficiency = (
            self.calibration.attention_efficiency if part == "attention" else self.calibration.matmul_efficiency
        )
        compute = flops / (peak * efficiency)
        memory = (weight_bytes + kv_bytes + other_bytes) / self.memory_bytes_per_s
        seconds = soft_max(compute, memory, self.calibration.overlap_power)
        self.floor_flop_s = self.floor_flop_s + count * flops / peak
        self.floor_bytes = self.floor_bytes + count * (weight_bytes + kv_bytes)
        self.terms.append(
            Term(name, count * flops, kind, count * weight_bytes, count * kv_bytes, count * other_bytes, 0.0,
                 count * seconds, count * compute, count * memory)
        )  # fmt: skip

    def link(self, name: str, count: Num, sent_bytes: Num, seconds: Num) -> None:
        self.terms.append(Term(name, 0.0, "", 0.0, 0.0, 0.0, count * sent_bytes, count * seconds, 0.0, 0.0))

    def overhead(self, name: str, seconds: Num) -> None:
        self.terms.append(Term(name, 0.0, "", 0.0, 0.0, 0.0, 0.0, seconds, 0.0, 0.0))


def step_cost(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    batch: StepBatch,
    calibration: Calibration,
    *,
    energy: EnergyModel = DEFAULT_ENERGY,
) -> StepCost:
    """Estimate one step of `batch` (counts of the whole instance) on one instance laid out as `layout`."""
    shape = shape_of(spec)
    price = _Pricer(hardware, layout, precision, calibration)
    tokens = batch.tokens
    rows = _rows(tokens, layout.dp_attention * layout.pp)  # tokens each attention rank works on at a time
    stage_tokens = largest(tokens / layout.pp, smallest(tokens, 1.0))  # tokens the experts of a stage see at a time
    for kind in shape.kinds:
        _mixer_terms(price, kind, batch, rows, layout, precision, shape.d_model)
        _ffn_terms(price, kind, rows, stage_tokens, layout, precision, shape.d_model)
        _link_terms(price, kind, rows, layout, precision, shape.d_model)
    head_rows = _rows(batch.logit_rows, layout.dp_attention * layout.pp)
    head_bytes = bytes_per_value(precision.head)
    price.kernel(
        "head", "head", 1, 2.0 * head_rows * shape.head_params / layout.tp, shape.head_params * head_bytes / layout.tp, 0.0,
        head_rows * shape.vocab_size * 6.0 / layout.tp + rows * shape.d_model * 2.0 * head_bytes,
    )  # fmt: skip
    _pipeline_terms(price, rows, layout, shape.d_model)
    _overhead_terms(price, batch, layout, shape.num_layers, calibration)
    return _collect(price, batch, layout, calibration, energy)


def _mixer_terms(
    price: _Pricer, kind: LayerKind, batch: StepBatch, rows: Num, layout: Layout, precision: Precision, d_model: int
) -> None:
    weights = bytes_per_value(precision.weights)
    params = kind.mixer_params + kind.indexer_params
    if params:
        price.kernel(
            "attention_weights", "weights", kind.count, 2.0 * rows * params / layout.tp, params * weights / layout.tp, 0.0,
            rows * d_model * 12.0,
        )  # fmt: skip
    flops: Num = 0.0
    read: Num = 0.0
    ranks = layout.dp_attention * layout.pp
    for group in batch.groups:
        share = largest(group.count / ranks, smallest(group.count, 1.0)) / _positive(group.count)
        flops = flops + mixer_flops(kind, group) * share
        read = (
            read + (cache_read_bytes(kind, group, precision.kv) + cache_write_bytes(kind, group, precision.kv)) * share
        )
    if kind.gqa or kind.mla or kind.linear:
        replicas = kv_replication(kind, layout.tp)
        price.kernel("attention_kv", "attention", kind.count, flops / layout.tp, 0.0, read * replicas / layout.tp, 0.0)


def _positive(value: Num) -> Num:
    return largest(value, 1e-12)


def _ffn_terms(
    price: _Pricer, kind: LayerKind, rows: Num, stage_tokens: Num, layout: Layout, precision: Precision, d_model: int
) -> None:
    weights, experts = bytes_per_value(precision.weights), bytes_per_value(precision.experts)
    if kind.dense:
        price.kernel(
            "ffn", "weights", kind.count, 2.0 * rows * kind.dense_params / layout.tp, kind.dense_params * weights / layout.tp, 0.0,
            rows * (d_model * 8.0 + kind.dense.width * 6.0 / layout.tp),
        )  # fmt: skip
    if not kind.moe:
        return
    moe = kind.moe
    skew = price.calibration.routing_skew
    busy = busiest_rank(layout.ep, stage_tokens, moe.num_experts, moe.top_k, skew)
    hit = distinct_experts(moe.num_experts, moe.top_k, stage_tokens, skew)
    hit_on_rank = smallest(moe.num_experts / layout.ep, hit / layout.ep * busy)
    pairs_on_rank = stage_tokens * moe.top_k / layout.ep * busy
    price.kernel(
        "experts", "experts", kind.count, 2.0 * pairs_on_rank * kind.expert_params / layout.moe_tp,
        hit_on_rank * kind.expert_params * experts / layout.moe_tp, 0.0,
        pairs_on_rank * (d_model * 4.0 + moe.width * 6.0 / layout.moe_tp),
    )  # fmt: skip
    price.kernel(
        "router",
        "head",
        kind.count,
        2.0 * rows * kind.router_params,
        kind.router_params * bytes_per_value(precision.head),
        0.0,
        rows * d_model * 2.0,
    )
    if kind.latent_params:
        price.kernel(
            "latent",
            "weights",
            kind.count,
            2.0 * rows * kind.latent_params / layout.tp,
            kind.latent_params * weights / layout.tp,
            0.0,
            0.0,
        )
    if kind.shared_params:
        price.kernel(
            "shared",
            "experts",
            kind.count,
            2.0 * rows * kind.shared_params / layout.tp,
            kind.shared_params * experts / layout.tp,
            0.0,
            rows * d_model * 4.0,
        )


def _link_terms(price: _Pricer, kind: LayerKind, rows: Num, layout: Layout, precision: Precision, d_model: int) -> None:
    hardware, efficiency = price.hardware, price.calibration.link_efficiency
    dispatches = kind.moe is not None and not all_true(layout.dp_attention == 1)
    if not all_true(layout.tp == 1):
        sent, seconds = links.all_reduce(rows * d_model * 2.0, layout.tp, hardware, layout, efficiency)
        collectives = (1.0 if kind.gqa or kind.mla or kind.linear else 0.0) + (1.0 if (kind.dense or kind.moe) else 0.0)
        price.link("tp_all_reduce", kind.count * collectives, sent, seconds)
        price.overhead(
            "collectives", (layout.tp > 1) * kind.count * collectives * price.calibration.collective_overhead_s
        )
    if dispatches:
        assert kind.moe is not None
        width = kind.moe.latent_dim or d_model
        per_pair = width * (bytes_per_value(precision.dispatch) + bytes_per_value(precision.combine))
        sent, seconds = links.all_to_all(
            rows / layout.tp * kind.moe.top_k * per_pair, layout.stage_chips, hardware, layout, efficiency
        )
        spread = (layout.dp_attention > 1) * 1.0
        price.link("ep_all_to_all", kind.count * spread, sent, seconds)
        price.overhead("collectives", spread * 2 * kind.count * price.calibration.collective_overhead_s)


def _pipeline_terms(price: _Pricer, rows: Num, layout: Layout, d_model: int) -> None:
    if all_true(layout.pp == 1):
        return
    payload = rows * d_model * 2.0 / layout.tp
    seconds = links.hop(payload, layout.chips, price.hardware, layout, price.calibration.link_efficiency)
    price.link("pp_hops", layout.pp * 1.0, payload, seconds + price.calibration.hop_latency_s)


def _overhead_terms(
    price: _Pricer, batch: StepBatch, layout: Layout, num_layers: int, calibration: Calibration
) -> None:
    price.overhead("step", calibration.step_overhead_s)
    price.overhead("layers", num_layers * calibration.layer_overhead_s)
    price.overhead("sequences", batch.sequences / layout.dp_attention * calibration.sequence_overhead_s)


def _collect(
    price: _Pricer, batch: StepBatch, layout: Layout, calibration: Calibration, energy: EnergyModel
) -> StepCost:
    merged: dict[str, Term] = {}
    for term in price.terms:
        seen = merged.get(term.name)
        merged[term.name] = term if seen is None else Term(
            term.name, seen.flops + term.flops, term.flop_type, seen.weight_bytes + term.weight_bytes, seen.kv_bytes + term.kv_bytes,
            seen.other_bytes + term.other_bytes, seen.link_bytes + term.link_bytes, seen.seconds + term.seconds,
            seen.compute_s + term.compute_s, seen.memory_s + term.memory_s,
        )  # fmt: skip
    terms = tuple(merged.values())
    roof: dict[str, Num] = dict.fromkeys(ROOFS, 0.0)
    for term in terms:
        if term.flop_type:
            busy = _positive(term.compute_s + term.memory_s)
            compute = term.seconds * term.compute_s / busy
            memory = term.seconds - compute
            roof["compute"] = roof["compute"] + compute
            side = "kv" if term.name == "attention_kv" else "weights"
            roof[side] = roof[side] + memory
        elif term.name in ("tp_all_reduce", "ep_all_to_all", "pp_hops"):
            roof["links"] = roof["links"] + term.seconds
        else:
            roof["overhead"] = roof["overhead"] + term.seconds
    total = sum((term.seconds for term in terms), 0.0)
    floor = largest(price.floor_flop_s, price.floor_bytes / price.peak_memory)
    return StepCost(
        hardware=price.hardware, layout=layout, calibration=calibration, energy=energy, tokens=batch.tokens,
        sequences=batch.sequences, estimate_s=total, floor_s=floor, terms=terms, roof_s=roof,
    )  # fmt: skip
