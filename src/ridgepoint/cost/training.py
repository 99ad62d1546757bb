"""Training: seconds and bytes of one optimizer step under DP/FSDP, TP, EP and PP, with recompute or reversible layers.

FLOPs: 2 per active weight and token forward, 4 backward, attention on top; recomputing a layer adds its forward again, a
reversible layer adds its inverse (as many FLOPs) and keeps no activations but the last. A pipeline idles (p - 1) / (m v) of its
work: p stages, m micro-batches, v chunks per stage. Gradients and FSDP gathers hide behind compute up to their own time.
Quality is not here: see `balance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.flops import forward_flops_per_token
from ridgepoint.cost.formats import NARROW_TYPES, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import usable_bytes
from ridgepoint.cost.shape import LayerKind, ModelShape, shape_of
from ridgepoint.errors import ConfigError, PlanError

Recompute = Literal["none", "selective", "full", "reversible"]

# Bytes per parameter: bf16 weight, fp32 gradient, and Adam's fp32 master, mean and variance.
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2.0, 4.0, 12.0


@dataclass(frozen=True, kw_only=True)
class TrainLayout:
    """Degrees of one training job. `ep` splits experts within the data-parallel ranks; `fsdp` shards all state over `dp`."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    micro_batches: int = 1
    chunks_per_stage: int = 1
    fsdp: bool = True
    sequence_parallel: bool = True
    recompute: Recompute = "none"

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp", "ep", "micro_batches", "chunks_per_stage"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training layout: {name} must be at least 1, got {getattr(self, name)}")
        if (self.dp * self.tp) % self.ep:
            raise ConfigError(f"ep {self.ep} does not divide dp x tp = {self.dp * self.tp}")

    @property
    def chips(self) -> int:
        return self.dp * self.tp * self.pp


@dataclass(frozen=True)
class TrainCost:
    """One optimizer step. `bubble_frac` of the step the pipeline idles; `mfu` counts useful FLOPs only."""

    estimate_s: float
    compute_s: float
    bubble_frac: float
    exposed_link_s: float
    mfu: float
    memory_bytes: dict[str, float]
    useful_flops: float

    @property
    def memory_total_bytes(self) -> float:
        return sum(self.memory_bytes.values())


def train_flops_per_token(spec: ModelSpec, sequence: float) -> float:
    """Forward plus a backward of twice it: 6 per active weight and three times the attention."""
    return 3.0 * forward_flops_per_token(spec, sequence)


def activation_values_per_token(kind: LayerKind, shape: ModelShape) -> tuple[float, float]:
    """(values split by TP, values every TP rank keeps unless sequence-parallel) saved for the backward pass by one layer."""
    d = float(shape.d_model)
    kept = (2.0 + 2.0 * shape.residual_streams) * d  # both residual inputs and both norms' outputs
    split = 0.0
    if kind.gqa:
        g = kind.gqa
        split += g.num_heads * (g.head_dim + g.v_head_dim) + g.num_kv_heads * (g.head_dim + g.v_head_dim)
    elif kind.mla:
        m = kind.mla
        split += m.num_heads * (2 * (m.nope_dim + m.rope_dim) + 2 * m.v_dim)
        kept += (m.q_rank or 0) + m.kv_rank + m.rope_dim
    elif kind.compressed:
        split += 2.0 * kind.compressed.num_heads * kind.compressed.head_dim
        kept += kind.compressed.q_rank + 2.0 * kind.compressed.head_dim
    elif kind.linear:
        split += kind.linear.num_params / d
    if kind.dense:
        split += 3.0 * kind.dense.width
    if kind.moe:
        split += kind.moe.top_k * (3.0 * kind.moe.width + 2.0 * (kind.moe.latent_dim or d))
        split += 3.0 * kind.moe.shared.width if kind.moe.shared else 0.0
    return split, kept


def activation_bytes_per_token(spec: ModelSpec, layout: TrainLayout) -> float:
    """Saved for the backward pass per token of a micro-batch on one chip, over the layers it holds (bf16).

    1F1B keeps as many micro-batches on the first stage as there are stages, so PP divides layers and multiplies batches: L
    layers' worth, and (p - 1) / (p v) more with interleaving.
    """
    shape = shape_of(spec)
    interleave = 1.0 + (layout.pp - 1) / (layout.pp * layout.chunks_per_stage) if layout.chunks_per_stage > 1 else 1.0
    total = 0.0
    for kind in shape.kinds:
        split, kept = activation_values_per_token(kind, shape)
        if layout.recompute == "full":
            total += kind.count * shape.d_model / (layout.tp if layout.sequence_parallel else 1)
        elif layout.recompute != "reversible":
            total += kind.count * (split / layout.tp + kept / (layout.tp if layout.sequence_parallel else 1))
    if layout.recompute == "reversible":  # one layer's inside at a time, and the two streams at the end
        split, kept = max((activation_values_per_token(kind, shape) for kind in shape.kinds), key=sum)
        return 2.0 * (split / layout.tp + kept + 2.0 * shape.d_model)
    return 2.0 * total * interleave


def classic_activation_bytes(
    *, sequence: float, micro_batch: float, width: float, heads: float, layers: float, tp: float, pp: float = 1.0,
    chunks_per_stage: float = 1.0, recompute: Literal["none", "selective", "full"] = "none", sequence_parallel: bool = False,
) -> float:  # fmt: skip
    """Per-chip bytes for the classic block (MHA, 4x GELU, dropout, fp16) of arXiv:2205.05198, equations 2 to 5."""
    per_layer = sequence * micro_batch * width
    quadratic = 0.0 if recompute == "selective" else 5.0 * heads * sequence / (width * tp)
    if recompute == "full":
        factor = 2.0
    elif sequence_parallel:
        factor = 34.0 / tp + quadratic
    else:
        factor = 10.0 + 24.0 / tp + quadratic
    interleave = 1.0 + (pp - 1) / (pp * chunks_per_stage) if chunks_per_stage > 1 else 1.0
    return per_layer * factor * layers * interleave


def state_bytes_per_chip(spec: ModelSpec, layout: TrainLayout) -> dict[str, float]:
    """Weights, gradients and Adam state of one chip. Experts divide over ep x the rest of tp; FSDP divides all by dp."""
    shape = shape_of(spec)
    experts = shape.expert_params
    dense = shape.total_params - experts
    held = (dense / layout.tp + experts / max(layout.tp, layout.ep)) / layout.pp
    replicas_dense, replicas_expert = layout.dp, max(layout.dp * layout.tp / max(layout.tp, layout.ep), 1.0)
    sharded = (dense / layout.tp / replicas_dense + experts / max(layout.tp, layout.ep) / replicas_expert) / layout.pp
    count = sharded if layout.fsdp else held
    return {"weights": WEIGHT_BYTES * count, "gradients": GRADIENT_BYTES * count, "optimizer": OPTIMIZER_BYTES * count}


def train_step(
    spec: ModelSpec, hardware: Accelerator, layout: TrainLayout, calibration: Calibration, *, batch_tokens: float, sequence: float,
    precision: str = "bf16",
) -> TrainCost:  # fmt: skip
    """One optimizer step over `batch_tokens`. PlanError when the state and activations do not fit."""
    if batch_tokens <= 0 or sequence <= 0:
        raise ConfigError(f"batch_tokens and sequence must be positive, got {batch_tokens:g} and {sequence:g}")
    tokens_per_rank = batch_tokens / layout.dp
    micro_tokens = tokens_per_rank / layout.micro_batches
    useful = train_flops_per_token(spec, sequence) * batch_tokens
    again = {"none": 0.0, "selective": 0.02, "full": 1.0 / 3.0, "reversible": 1.0 / 3.0}[layout.recompute]
    peak = hardware.flops_per_s(precision)
    efficiency = calibration.matmul_efficiency * (calibration.narrow_efficiency if precision in NARROW_TYPES else 1.0)
    compute = useful * (1.0 + again) / (layout.chips * peak * efficiency)
    bubble = (layout.pp - 1) / (layout.micro_batches * layout.chunks_per_stage)
    exposed = _exposed_link_s(spec, hardware, layout, calibration, micro_tokens, compute)
    seconds = compute * (1.0 + bubble) + exposed
    memory = state_bytes_per_chip(spec, layout)
    memory["activations"] = activation_bytes_per_token(spec, layout) * micro_tokens
    if hardware.spec_memory_bytes is not None:
        room = usable_bytes(hardware, Layout())
        if sum(memory.values()) > room:
            worst = max(memory, key=lambda name: memory[name])
            raise PlanError(
                f"training does not fit: {sum(memory.values()) / 1e9:.1f} GB a chip of {room / 1e9:.1f} usable, most of it {worst}",
                hint="more pp/ep/fsdp ranks, smaller micro-batches, or recompute",
            )
    return TrainCost(
        estimate_s=seconds, compute_s=compute, bubble_frac=bubble / (1.0 + bubble), exposed_link_s=exposed,
        mfu=useful / (layout.chips * peak * seconds), memory_bytes=memory, useful_flops=useful,
    )  # fmt: skip


def _exposed_link_s(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: TrainLayout,
    calibration: Calibration,
    micro_tokens: float,
    compute_s: float,
) -> float:
    """What compute does not hide: TP and EP exchanges stand in the way of the layer; gradient traffic only past compute's time."""
    shape = shape_of(spec)
    domain = hardware.scaleup_domain_chips or 1
    near = hardware.spec_scaleup_bytes_per_s
    value = bytes_per_value("bf16")
    blocking = 0.0
    if layout.tp > 1:
        if layout.tp > domain:
            raise PlanError(
                f"tp {layout.tp} leaves the scale-up domain of {domain} chips", hint="keep tp inside the domain"
            )
        payload = micro_tokens * shape.d_model * value * 2.0 * (layout.tp - 1) / layout.tp
        blocking += 4.0 * shape.num_layers / layout.pp * payload / _need(near, hardware, "scale-up")
    moe_layers = sum(kind.count for kind in shape.kinds if kind.moe)
    if layout.ep > 1 and moe_layers:
        top_k = next(kind.moe.top_k for kind in shape.kinds if kind.moe)
        inside = layout.ep <= domain
        link = _need(
            near if inside else hardware.spec_scaleout_bytes_per_s, hardware, "scale-up" if inside else "scale-out"
        )
        sent = micro_tokens / layout.tp * top_k * shape.d_model * value * (layout.ep - 1) / layout.ep
        blocking += 4.0 * moe_layers / layout.pp * sent / link  # dispatch and combine, forward and backward
    gradient = 0.0
    if layout.dp > 1:
        inside = layout.chips <= domain
        link = _need(
            near if inside else hardware.spec_scaleout_bytes_per_s, hardware, "scale-up" if inside else "scale-out"
        )
        held = (shape.total_params - shape.expert_params) / layout.tp + shape.expert_params / max(layout.tp, layout.ep)
        gathers = 3.0 if layout.fsdp else 2.0  # gather forward, gather backward, scatter; or one all-reduce
        gradient = gathers * held / layout.pp * value * (layout.dp - 1) / layout.dp / link
    return (blocking * layout.micro_batches + max(0.0, gradient - compute_s)) / calibration.link_efficiency


def _need(bandwidth: float | None, hardware: Accelerator, which: str) -> float:
    if bandwidth is None:
        return hardware.need(f"spec_{which.replace('-', '')}_bytes_per_s", "training over several chips")
    return bandwidth


def training_days(total_flops: float, chips: float, peak_flops_per_s: float, mfu: float) -> float:
    if not 0 < mfu <= 1:
        raise ConfigError(f"mfu is a fraction of peak in (0, 1], got {mfu:g}")
    return total_flops / (chips * peak_flops_per_s * mfu) / 86400.0
