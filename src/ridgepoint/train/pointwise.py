"""The element-wise pieces of a training step, each one function of tensors, fused by `torch.compile` when asked.

Decides the order of roundings (statistics and exponentials in float32, results in the input's type); knows nothing of
layers. Invariant: compiled and eager run the same source, so a machine without a C++ compiler trains the same model,
only slower. On a CPU these pieces cost as much time as the matrix products when every operation is a pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x = x_TD.float()
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight_D).to(x_TD.dtype)


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor, scale: float, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual sum (rounded to the stream's type) and its norm."""
    total_TD = torch.add(x_TD, delta_TD, alpha=scale)
    return total_TD, rms_norm(total_TD, weight_D, eps)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    gate, up = gate_up_T2F.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up_T2F.dtype)


def weighted_swiglu(gate_up_N2F: Tensor, weight_N: Tensor) -> Tensor:
    """SwiGLU with the router's weight folded in where a row is F wide and not D."""
    gate, up = gate_up_N2F.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up * weight_N[:, None]).to(gate_up_N2F.dtype)


def weighted_swiglu_grad(grad_NF: Tensor, gate_up_N2F: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `weighted_swiglu` with respect to both inputs."""
    gate, up = gate_up_N2F.float().chunk(2, dim=-1)
    grad = grad_NF.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_weight_N = (grad * silu * up).sum(-1)
    scaled = grad * weight_N[:, None]
    grad_gate = scaled * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat((grad_gate, scaled * silu), dim=-1).to(gate_up_N2F.dtype), grad_weight_N


def rotate(x_BSHP: Tensor, cos_SF: Tensor, sin_SF: Tensor) -> Tensor:
    """Rotary embedding in halves over the first 2F channels; the others pass."""
    width = 2 * cos_SF.shape[-1]
    cos, sin = cos_SF[:, None, :], sin_SF[:, None, :]
    first, second = x_BSHP[..., :width].chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x_BSHP[..., width:]), dim=-1)


def queries_keys_values(
    q_BSHP: Tensor,
    k_BSGP: Tensor,
    v_BSGP: Tensor,
    q_norm_P: Tensor,
    k_norm_P: Tensor,
    eps: float,
    cos_SF: Tensor,
    sin_SF: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise and rotate, and lay out queries as [B*G, S*(H/G), P] so that the query heads of one key head are rows of
    one product; keys and values as [B*G, S, P]."""
    batch, length, groups, head_dim = k_BSGP.shape
    kind = q_BSHP.dtype
    q, k = q_BSHP.float(), k_BSGP.float()
    q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + eps) * q_norm_P
    k = k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + eps) * k_norm_P
    q, k = rotate(q, cos_SF, sin_SF), rotate(k, cos_SF, sin_SF)
    q = q.view(batch, length, groups, -1, head_dim).permute(0, 2, 1, 3, 4)
    return (
        q.to(kind).reshape(batch * groups, -1, head_dim),
        k.transpose(1, 2).to(kind).reshape(batch * groups, length, head_dim),
        v_BSGP.transpose(1, 2).reshape(batch * groups, length, head_dim),
    )


def causal_softmax(scores_NQK: Tensor, query_K: Tensor, first_query: int, scale: float) -> Tensor:
    """Softmax over keys `<= first_query + query_K[row]`: `query_K` maps a row to its position within the chunk."""
    positions = torch.arange(scores_NQK.shape[-1], device=scores_NQK.device)
    visible = positions[None, :] <= (query_K + first_query)[:, None]
    scores = torch.where(visible, scores_NQK.float() * scale, float("-inf"))
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)).to(scores_NQK.dtype)


def softmax_grad(grad_NQK: Tensor, probs_NQK: Tensor, scale: float) -> Tensor:
    probs, grad = probs_NQK.float(), grad_NQK.float()
    return (probs * (grad - (probs * grad).sum(-1, keepdim=True)) * scale).to(probs_NQK.dtype)


def cross_entropy_grad(logits_NV: Tensor, targets_N: Tensor, grad_scale: float) -> tuple[Tensor, Tensor]:
    """Summed negative log likelihood in nats (float32), and its gradient times `grad_scale` in the logits' type."""
    logits = logits_NV.float()
    top = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    loss_N = (total.log() + top).squeeze(-1) - logits.gather(1, targets_N[:, None]).squeeze(-1)
    hit = torch.arange(logits.shape[1], device=logits.device)[None, :] == targets_N[:, None]
    grad = (weights / total - hit.to(torch.float32)) * grad_scale
    return loss_N.sum(), grad.to(logits_NV.dtype)


def sum_rows(rows_ND: Tensor, index_TK: Tensor) -> Tensor:
    """`sum_k rows[index[t, k]]`, summed in float32."""
    return rows_ND[index_TK].float().sum(1).to(rows_ND.dtype)


def allow_many_shapes() -> None:
    """To be called in every thread that runs compiled pieces, because the limit is a thread's own: past it (8 by default)
    a new shape runs uncompiled, and which shapes are new depends on where a run was resumed."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64


class Pointwise:
    """The functions above, plain or compiled: chosen once per run and handed down."""

    def __init__(self, *, compiled: bool) -> None:
        def prepare(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self.compiled = compiled
        self.rms_norm = prepare(rms_norm)
        self.add_rms_norm = prepare(add_rms_norm)
        self.swiglu = prepare(swiglu)
        self.weighted_swiglu = prepare(weighted_swiglu)
        self.weighted_swiglu_grad = prepare(weighted_swiglu_grad)
        self.queries_keys_values = prepare(queries_keys_values)
        self.causal_softmax = prepare(causal_softmax)
        self.softmax_grad = prepare(softmax_grad)
        self.cross_entropy_grad = prepare(cross_entropy_grad)
        self.sum_rows = prepare(sum_rows)
