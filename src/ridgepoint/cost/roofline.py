"""Where compute meets memory, and where compute meets wires: the ridge numbers, from peaks alone.

A matrix of N weights of w bytes read once for B tokens costs N w / bandwidth and 2 N B / FLOP/s: equal at
B* = (FLOP/s / bytes/s) w / 2. A sparse model reads all it holds (at large B) and multiplies only what is active, so its B* is
larger by N_total / N_active: sparsity, not scale, sets it.
"""

from __future__ import annotations

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num, largest, soft_max
from ridgepoint.cost.formats import Precision, bytes_per_value, matmul_type
from ridgepoint.cost.memory import weight_bytes
from ridgepoint.cost.shape import shape_of


def flops_per_byte(hardware: Accelerator, flop_type: str = "bf16") -> float:
    """The chip's own ratio (its ridge point), from spec_ peaks."""
    return hardware.flops_per_s(flop_type) / hardware.need("spec_memory_bytes_per_s", "the ridge point")


def critical_tokens(flops_per_s: float, bytes_per_s: float, bytes_per_weight: float) -> float:
    """Rows at which one dense matrix product turns from memory-bound to compute-bound (activations' bytes neglected)."""
    return flops_per_s * bytes_per_weight / (2.0 * bytes_per_s)


def critical_rows(
    contraction: float,
    outputs: float,
    flops_per_s: float,
    bytes_per_s: float,
    bytes_per_weight: float,
    bytes_in: float,
    bytes_out: float,
) -> float:
    """As `critical_tokens`, with the bytes of a product's own inputs and outputs counted; infinite if they alone bind."""
    weights_s = contraction * outputs * bytes_per_weight / bytes_per_s
    per_row_s = 2.0 * contraction * outputs / flops_per_s - (contraction * bytes_in + outputs * bytes_out) / bytes_per_s
    return weights_s / per_row_s if per_row_s > 0 else float("inf")


def ridge_batch(spec: ModelSpec, hardware: Accelerator, precision: Precision) -> float:
    """B*: tokens per step at which multiplying the active weights takes as long as reading all of them."""
    shape = shape_of(spec)
    read_s = weight_bytes(spec, precision) / hardware.need("spec_memory_bytes_per_s", "the ridge batch")
    expert_active = sum(k.count * k.moe.top_k * k.expert_params for k in shape.kinds if k.moe)
    expert_rate = hardware.flops_per_s(matmul_type(precision.experts, precision.activations))
    dense_rate = hardware.flops_per_s(matmul_type(precision.weights, precision.activations))
    token_s = 2.0 * expert_active / expert_rate + 2.0 * (shape.active_params - expert_active) / dense_rate
    return read_s / token_s


def ridge_batch_rule(ratio_flops_per_byte: float, sparsity: float, bytes_per_weight: float = 2.0) -> float:
    """The back-of-envelope form: ratio x bytes/2 x N_total/N_active. On an H100-class chip in bf16, about 300 x sparsity."""
    return ratio_flops_per_byte * bytes_per_weight / 2.0 * sparsity


def matmul_s(
    rows: Num, contraction: float, outputs: float, hardware: Accelerator, *, weights: str = "bf16", activations: str = "bf16",
    matmul_efficiency: float = 1.0, memory_efficiency: float = 1.0, overlap_power: float | None = None,
) -> Num:  # fmt: skip
    """Seconds of one product: the slower of its FLOPs and its bytes (weights once, inputs and outputs once); with `overlap_power`
    their smooth maximum, as in the step law."""
    kind = hardware.compute_type(matmul_type(weights, activations))
    compute = 2.0 * rows * contraction * outputs / (hardware.spec_flops_per_s[kind] * matmul_efficiency)
    moved = contraction * outputs * bytes_per_value(weights) + rows * (contraction + outputs) * bytes_per_value(
        activations
    )
    memory = moved / (hardware.need("spec_memory_bytes_per_s", "a product") * memory_efficiency)
    return largest(compute, memory) if overlap_power is None else soft_max(compute, memory, overlap_power)


def link_critical_tokens(flops_per_s: float, link_bytes_per_s: float, sparsity: float = 1.0) -> float:
    """Tokens per chip below which a data-parallel training step waits for its gradients' reduction.

    Per weight: 2 bytes reduced and gathered (4 bytes one-way) against 4 T FLOPs of the backward pass. Idle experts' weights
    are reduced too and earn nothing, so sparsity multiplies it.
    """
    return flops_per_s / link_bytes_per_s * sparsity


def max_tensor_parallel(width: float, flops_per_s: float, link_bytes_per_s: float) -> float:
    """Ways of TP of a feed-forward of this width before the activations' all-reduce outlasts its products."""
    return width * link_bytes_per_s / flops_per_s
