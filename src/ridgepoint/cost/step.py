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
from ridgepoint.cost.amounts import Collective, Kernel, StepAmounts, step_amounts
from ridgepoint.cost.arrays import Num, is_scalar, largest, log2, soft_max, where
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.energy import DEFAULT_ENERGY, EnergyModel, step_joules
from ridgepoint.cost.formats import NARROW_TYPES, Precision, bytes_per_value, matmul_type, number_format
from ridgepoint.cost.layout import Layout

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
    `roof_s` splits the seconds by what sets them (`ROOFS`), `terms` by kernel class; `kernels` are the terms that compute, before
    layers of different kinds are added up. Joules, watts and dollars need facts that may be unknown (TDP, rent): asking for them
    raises the error that names the fact.
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
    kernels: tuple[Term, ...]
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
        """Per-chip bytes read and written in memory, SRAM included where the layout lies in it."""
        return sum((term.weight_bytes + term.kv_bytes + term.other_bytes for term in self.terms), 0.0)

    @property
    def sram_bytes(self) -> Num:
        """Of `memory_bytes`, those that move in on-chip SRAM."""
        if not self.layout.sram:
            return 0.0
        return self.memory_bytes - self.kv_bytes if self.layout.split_memory else self.memory_bytes

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
            memory_bytes=(self.memory_bytes - self.sram_bytes) * chips, sram_bytes=self.sram_bytes * chips,
            link_bytes=self.link_bytes * chips,
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
    amounts = step_amounts(
        spec, layout, precision, batch, routing_skew=calibration.routing_skew, tiles=calibration.tiles
    )
    return price_step(amounts, hardware, calibration, energy=energy)


def price_step(
    amounts: StepAmounts,
    hardware: Accelerator,
    calibration: Calibration,
    *,
    energy: EnergyModel = DEFAULT_ENERGY,
    graph: bool = True,
) -> StepCost:
    """The second half of `step_cost`: the same amounts may be priced again under another calibration or chip.

    `graph` says the step replays a recorded launch sequence; otherwise the host launches every kernel, and where it is
    slower than the device the step takes the host's time.
    """
    layout, precision = amounts.layout, amounts.precision
    speeds = memory_speeds(hardware, layout)
    types = _arithmetic(hardware, precision)
    merged: dict[str, Term] = {}
    kernels: list[Term] = []
    floor_compute_s: Num = 0.0
    floor_weight_bytes: Num = 0.0
    floor_kv_bytes: Num = 0.0
    launches: Num = 0.0
    for kernel in amounts.kernels:
        kind = types[kernel.part]
        unpack_s = _unpack_s(kernel, kind, precision, hardware, calibration)
        term = _price_kernel(kernel, kind, unpack_s, hardware, speeds, calibration)
        _add(merged, term)
        kernels.append(term)
        floor_compute_s = floor_compute_s + kernel.repeats * kernel.flops / hardware.spec_flops_per_s[term.flop_type]
        floor_weight_bytes = floor_weight_bytes + kernel.repeats * kernel.weight_bytes
        floor_kv_bytes = floor_kv_bytes + kernel.repeats * kernel.kv_bytes
        launches += kernel.repeats * kernel.launches
    collectives: Num = 0.0
    for collective in amounts.collectives:
        sent, seconds = _exchange_s(collective, hardware, layout, calibration)
        _add(merged, _idle_term(collective.name, collective.repeats * seconds, collective.repeats * sent))
        collectives = collectives + collective.repeats * _rounds(collective, hardware)
    launch_s = launches * calibration.kernel_overhead_s
    if not graph:
        launch_s = largest(
            launch_s, launches * calibration.eager_kernel_s - sum((term.seconds for term in merged.values()), 0.0)
        )
    for name, overhead in (
        ("step", calibration.step_overhead_s),
        ("launches", launch_s),
        ("collectives", collectives * calibration.collective_overhead_s),
        ("sequences", amounts.sequences / layout.dp_attention * calibration.sequence_overhead_s),
    ):
        _add(merged, _idle_term(name, overhead, 0.0))
    terms = tuple(merged.values())
    return StepCost(
        hardware=hardware, layout=layout, calibration=calibration, energy=energy, tokens=amounts.tokens, sequences=amounts.sequences,
        estimate_s=sum((term.seconds for term in terms), 0.0), floor_s=largest(floor_compute_s, _floor_memory_s(floor_weight_bytes, floor_kv_bytes, speeds, layout)),
        terms=terms, kernels=tuple(kernels), roof_s=_roofs(terms),
    )  # fmt: skip


def memory_speeds(hardware: Accelerator, layout: Layout) -> tuple[float, float]:
    """Bytes/s of the memory the weights lie in, and of the cache's."""
    if not layout.sram:
        main = hardware.need("spec_memory_bytes_per_s", "the time of a step")
        return main, main
    sram = hardware.need("spec_sram_bytes_per_s", "an SRAM-resident layout")
    return sram, sram if layout.kv_in_sram else hardware.need("spec_memory_bytes_per_s", "a cache in main memory")


def _floor_memory_s(weight_bytes: Num, kv_bytes: Num, speeds: tuple[float, float], layout: Layout) -> Num:
    """One memory after the other where it is one; two memories can be read at once."""
    weights_s, kv_s = weight_bytes / speeds[0], kv_bytes / speeds[1]
    return largest(weights_s, kv_s) if layout.split_memory else weights_s + kv_s


def _arithmetic(hardware: Accelerator, precision: Precision) -> dict[str, str]:
    """The matrix-unit type of each part's products on this chip."""
    return {
        "weights": hardware.compute_type(matmul_type(precision.weights, precision.activations)),
        "experts": hardware.compute_type(matmul_type(precision.experts, precision.activations)),
        "head": hardware.compute_type(matmul_type(precision.head, precision.head)),
        "attention": hardware.compute_type(matmul_type(precision.attention, precision.attention)),
    }


# A byte is only converted; a code of fewer bits is masked, shifted and scaled as well (an estimate).
WHOLE_BYTE_SHARE = 0.25
# Dense 16-bit over fp32 vector peak: 989 / 67 TFLOP/s in NVIDIA's data sheet of the H100 SXM, 312 / 19.5 in the A100's.
MATRIX_OVER_VECTOR = 15.0


def _vector_flops_per_s(hardware: Accelerator) -> float:
    """fp32 arithmetic outside the matrix units: a fact where the catalogue has it, else an estimate from their 16-bit peak."""
    return hardware.spec_flops_per_s.get("fp32") or hardware.flops_per_s("bf16") / MATRIX_OVER_VECTOR


def _unpack_s(kernel: Kernel, kind: str, precision: Precision, hardware: Accelerator, calibration: Calibration) -> Num:
    """Vector units widen a weight once for every tile of rows that it meets: at least once, however few the rows. Chips that differ
    in bandwidth alone (H100, H200) do so equally fast, so this is no share of bandwidth."""
    if not _unpacks(kernel.part, kind, precision, hardware):
        return 0.0
    stored = number_format(getattr(precision, kernel.part))
    weights = kernel.weight_bytes / stored.bytes_per_value
    widened = largest(weights, kernel.padded_flops / (2.0 * calibration.large_tile_rows))
    flops = calibration.unpack_flops * (1.0 if stored.bits < 8 else WHOLE_BYTE_SHARE)
    return widened * flops / _vector_flops_per_s(hardware)


def _unpacks(part: str, kind: str, precision: Precision, hardware: Accelerator) -> bool:
    """Whether weights are stored narrower than the type they are multiplied in."""
    if part not in ("weights", "experts"):
        return False
    if kind == "fp8" and number_format(getattr(precision, part)).arithmetic in hardware.spec_flops_per_s:
        return False  # matrix units with 4-bit operands take them beside 8-bit ones as they are
    return bytes_per_value(getattr(precision, part)) < 0.75 * bytes_per_value(
        "bf16" if kind in ("bf16", "fp16") else "fp8" if kind in ("fp8", "int8") else "nvfp4"
    )


def _price_kernel(
    kernel: Kernel,
    kind: str,
    unpack_s: Num,
    hardware: Accelerator,
    speeds: tuple[float, float],
    calibration: Calibration,
) -> Term:
    if kernel.part == "attention":
        efficiency = calibration.attention_efficiency
    else:
        efficiency = calibration.grouped_efficiency if kernel.name == "experts" else calibration.matmul_efficiency
    compute = kernel.padded_flops / (hardware.spec_flops_per_s[kind] * efficiency)
    of_peak = calibration.kv_efficiency if kernel.part == "attention" else calibration.memory_efficiency
    if kind in NARROW_TYPES:
        compute = compute / calibration.narrow_efficiency
    compute = compute + unpack_s
    memory = ((kernel.weight_bytes + kernel.other_bytes) / speeds[0] + kernel.kv_bytes / speeds[1]) / of_peak
    seconds = soft_max(compute, memory, calibration.overlap_power)
    n = kernel.repeats
    return Term(
        kernel.name, n * kernel.flops, kind, n * kernel.weight_bytes, n * kernel.kv_bytes, n * kernel.other_bytes, 0.0,
        n * seconds, n * compute, n * memory,
    )  # fmt: skip


def _exchange_s(
    collective: Collective, hardware: Accelerator, layout: Layout, calibration: Calibration
) -> tuple[Num, Num]:
    """(bytes sent per chip, seconds) of one exchange: its bytes, and the network's latency where it leaves the scale-up domain; the
    latency of its rounds inside not included."""
    efficiency = calibration.link_efficiency
    if collective.kind == "hop":
        seconds = links.hop(collective.payload_bytes, collective.ranks, hardware, layout, efficiency)
        return collective.payload_bytes, seconds + calibration.hop_latency_s
    moved = (collective.payload_bytes, collective.ranks, hardware, layout, efficiency)
    if collective.kind == "all_reduce":
        sent, seconds = links.all_reduce(*moved, calibration.direct_bytes_per_s)
    else:
        sent, seconds = links.all_to_all(*moved)
    leaves = collective.ranks > links.domain_chips(hardware, layout)
    return sent, seconds + where(leaves, calibration.hop_latency_s, 0.0)


DIRECT_ROUNDS = 2.0  # what is sent, and the flags by which its receivers know that it has come


def _rounds(collective: Collective, hardware: Accelerator) -> Num:
    """What the latency of an exchange is paid by. A sum over ranks is a tree, a round per doubling; an all-to-all through a switch
    writes to every peer directly, however many there are, while a torus passes it on; a hop between stages is one."""
    if collective.kind == "hop":
        return 1.0
    if collective.kind == "all_to_all" and hardware.kind != "tpu":
        return where(collective.ranks > 1, DIRECT_ROUNDS, 0.0)
    return log2(largest(collective.ranks * 1.0, 1.0))


def _idle_term(name: str, seconds: Num, link_bytes: Num) -> Term:
    return Term(name, 0.0, "", 0.0, 0.0, 0.0, link_bytes, seconds, 0.0, 0.0)


def _add(merged: dict[str, Term], term: Term) -> None:
    seen = merged.get(term.name)
    if seen is None:
        merged[term.name] = term
        return
    merged[term.name] = Term(
        term.name, seen.flops + term.flops, term.flop_type, seen.weight_bytes + term.weight_bytes, seen.kv_bytes + term.kv_bytes,
        seen.other_bytes + term.other_bytes, seen.link_bytes + term.link_bytes, seen.seconds + term.seconds,
        seen.compute_s + term.compute_s, seen.memory_s + term.memory_s,
    )  # fmt: skip


def _roofs(terms: tuple[Term, ...]) -> dict[str, Num]:
    """Each kernel's seconds are shared between compute and memory in proportion to the two times it hides in one another."""
    roof: dict[str, Num] = dict.fromkeys(ROOFS, 0.0)
    for term in terms:
        if term.flop_type:
            compute = term.seconds * term.compute_s / largest(term.compute_s + term.memory_s, 1e-30)
            side = "kv" if term.name == "attention_kv" else "weights"
            roof["compute"] = roof["compute"] + compute
            roof[side] = roof[side] + (term.seconds - compute)
        else:
            side = "links" if term.name in ("tp_all_reduce", "ep_all_to_all", "pp_hops") else "overhead"
            roof[side] = roof[side] + term.seconds
    return roof
