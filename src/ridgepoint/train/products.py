"""The three matrix-product blocks of a training step with their gradients written out: causal attention, routed experts,
and the vocabulary's cross-entropy.

Decides chunking and what is kept for the backward pass; knows nothing of layers or parameters' names. Invariant: each is
the plain definition (tests hold it against autograd through it), only arranged so that nothing of size S x S above the
diagonal, T x V at once, or E x T is ever computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from ridgepoint.train.pointwise import Pointwise

QUERY_CHUNK = 256  # positions: above it the masked half of a chunk is wasted, below it products get thin
ROW_CHUNK = 1024  # rows of logits alive at once
# The CPU's matrix library builds (and caches) code for every row count it meets, at about the cost of the product
# itself. Expert loads are never twice the same, so without alignment it would build code for ever.
ROW_ALIGN = 32


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T scale) v over earlier positions. q_NQP holds `rows` query heads per position: Q = S * rows."""

    @staticmethod
    def forward(ctx: Any, q_NQP: Tensor, k_NSP: Tensor, v_NSP: Tensor, scale: float, ops: Pointwise) -> Tensor:
        length = k_NSP.shape[1]
        rows = q_NQP.shape[1] // length
        chunk = min(QUERY_CHUNK, length)
        query_K = torch.arange(chunk * rows, device=q_NQP.device) // rows
        out_NQP = torch.empty_like(q_NQP)
        kept = []
        for first in range(0, length, chunk):
            last = min(first + chunk, length)
            part = slice(first * rows, last * rows)
            scores = torch.bmm(q_NQP[:, part], k_NSP[:, :last].transpose(1, 2))
            probs = ops.causal_softmax(scores, query_K[: (last - first) * rows], first, scale)
            out_NQP[:, part] = torch.bmm(probs, v_NSP[:, :last])
            kept.append(probs)
        ctx.save_for_backward(q_NQP, k_NSP, v_NSP, *kept)
        ctx.scale, ctx.ops, ctx.chunk, ctx.rows = scale, ops, chunk, rows
        return out_NQP

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_NQP = grads[0].contiguous()
        q_NQP, k_NSP, v_NSP, *kept = ctx.saved_tensors
        length = k_NSP.shape[1]
        grad_q = torch.empty_like(q_NQP)
        grad_k, grad_v = torch.zeros_like(k_NSP), torch.zeros_like(v_NSP)
        for probs, first in zip(kept, range(0, length, ctx.chunk), strict=True):
            last = min(first + ctx.chunk, length)
            part = slice(first * ctx.rows, last * ctx.rows)
            grad_out = grad_NQP[:, part]
            grad_v[:, :last] += torch.bmm(probs.transpose(1, 2), grad_out)
            grad_probs = torch.bmm(grad_out, v_NSP[:, :last].transpose(1, 2))
            grad_scores = ctx.ops.softmax_grad(grad_probs, probs, ctx.scale)
            grad_q[:, part] = torch.bmm(grad_scores, k_NSP[:, :last])
            grad_k[:, :last] += torch.bmm(grad_scores.transpose(1, 2), q_NQP[:, part])
        return grad_q, grad_k, grad_v, None, None


def expert_rows(ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each choice goes when rows are sorted by expert: (place_TK, token_N, ends_E).

    Every expert's rows end at a multiple of `ROW_ALIGN`; rows between repeat token 0 and carry weight 0. Rows from
    `ends_E[-1]` on belong to nobody and are never read.
    """
    flat = ids_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    count_E = torch.bincount(flat, minlength=num_experts)
    room_E = (count_E + ROW_ALIGN - 1) // ROW_ALIGN * ROW_ALIGN
    ends_E = room_E.cumsum(0)
    shift_E = (ends_E - room_E) - (count_E.cumsum(0) - count_E)  # padding before an expert's rows
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device) + shift_E[flat[order]]
    num_rows = order.numel() + num_experts * ROW_ALIGN  # fixed, so that fused pieces see one shape
    token_N = torch.zeros(num_rows, dtype=order.dtype, device=order.device)
    token_N[place] = torch.arange(order.numel(), device=order.device) // ids_TK.shape[1]
    return place.view_as(ids_TK), token_N, ends_E.to(torch.int32)


class RoutedExperts(torch.autograd.Function):
    """sum_k weights[t, k] * expert[ids[t, k]](x[t]): rows sorted by expert, each product one grouped call, so that
    worker threads meet at the interpreter's lock once a product and not once an expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        ids_TK: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        ops: Pointwise,
    ) -> Tensor:
        place_TK, token_N, ends_E = expert_rows(ids_TK, gate_up_E2FD.shape[0])
        rows_ND = x_TD.index_select(0, token_N)
        weight_N = weights_TK.new_zeros(token_N.shape).index_copy_(0, place_TK.view(-1), weights_TK.reshape(-1))
        gate_up_N2F = grouped_mm(rows_ND, gate_up_E2FD.transpose(1, 2), offs=ends_E)
        inner_NF = ops.weighted_swiglu(gate_up_N2F, weight_N)
        out_ND = grouped_mm(inner_NF, down_EDF.transpose(1, 2), offs=ends_E)
        kept = (rows_ND, weight_N, gate_up_N2F, inner_NF, gate_up_E2FD, down_EDF)
        ctx.save_for_backward(*kept, ends_E, token_N, place_TK)
        ctx.ops = ops
        return ops.sum_rows(out_ND, place_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *kept, ends_E, token_N, place_TK = ctx.saved_tensors
        rows_ND, weight_N, gate_up_N2F, inner_NF, gate_up_E2FD, down_EDF = kept
        grad_ND = grads[0].index_select(0, token_N)
        grad_inner_NF = grouped_mm(grad_ND, down_EDF, offs=ends_E)
        grad_down = grouped_mm(grad_ND.t(), inner_NF, offs=ends_E)
        grad_hidden_N2F, grad_weight_N = ctx.ops.weighted_swiglu_grad(grad_inner_NF, gate_up_N2F, weight_N)
        grad_rows_ND = grouped_mm(grad_hidden_N2F, gate_up_E2FD, offs=ends_E)
        grad_gate_up = grouped_mm(grad_hidden_N2F.t(), rows_ND, offs=ends_E)
        return (
            ctx.ops.sum_rows(grad_rows_ND, place_TK),
            grad_weight_N[place_TK],
            None,
            grad_gate_up,
            grad_down,
            None,
        )


class VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of `x W^T` against targets, by row chunks; gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor, ops: Pointwise) -> Tensor:
        tokens = x_TD.shape[0]
        loss = x_TD.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x_TD)
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32)
        for begin in range(0, tokens, ROW_CHUNK):
            rows = x_TD[begin : begin + ROW_CHUNK]
            part, grad_NV = ops.cross_entropy_grad(rows @ head_VD.t(), targets_T[begin : begin + ROW_CHUNK], 1.0)
            loss += part
            torch.mm(grad_NV, head_VD, out=grad_x[begin : begin + ROW_CHUNK])
            grad_head += torch.mm(grad_NV.t(), rows)
        ctx.save_for_backward(grad_x, grad_head)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_head = ctx.saved_tensors
        scale = grads[0]
        return grad_x * scale.to(grad_x.dtype), (grad_head * scale).to(grad_x.dtype), None, None
