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

from ridgepoint.train.pointwise import Pointwise

QUERY_CHUNK = 256  # positions: above it the masked half of a chunk is wasted, below it products get thin
ROW_CHUNK = 1024  # rows of logits alive at once


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


class RoutedExperts(torch.autograd.Function):
    """sum_k weights[t, k] * expert[ids[t, k]](x[t]): rows sorted by expert, one pair of products per expert."""

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
        num_experts, width = gate_up_E2FD.shape[0], down_EDF.shape[2]
        flat_N = ids_TK.reshape(-1)
        order_N = torch.argsort(flat_N, stable=True)
        ends = torch.bincount(flat_N, minlength=num_experts).cumsum(0).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        token_N = order_N // ids_TK.shape[1]
        place_TK = torch.empty_like(order_N)
        place_TK[order_N] = torch.arange(order_N.numel(), device=order_N.device)
        place_TK = place_TK.view_as(ids_TK)
        rows_ND = x_TD.index_select(0, token_N)
        weight_N = weights_TK.reshape(-1).index_select(0, order_N)
        gate_up_N2F = x_TD.new_empty(order_N.numel(), 2 * width)
        for expert, (begin, end) in enumerate(spans):
            torch.mm(rows_ND[begin:end], gate_up_E2FD[expert].t(), out=gate_up_N2F[begin:end])
        inner_NF = ops.weighted_swiglu(gate_up_N2F, weight_N)
        out_ND = torch.empty_like(rows_ND)
        for expert, (begin, end) in enumerate(spans):
            torch.mm(inner_NF[begin:end], down_EDF[expert].t(), out=out_ND[begin:end])
        ctx.save_for_backward(rows_ND, weight_N, gate_up_N2F, inner_NF, gate_up_E2FD, down_EDF, token_N, order_N, place_TK)
        ctx.spans, ctx.ops = spans, ops
        return ops.sum_rows(out_ND, place_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, weight_N, gate_up_N2F, inner_NF, gate_up_E2FD, down_EDF, token_N, order_N, place_TK = ctx.saved_tensors
        grad_ND = grads[0].index_select(0, token_N)
        grad_inner_NF = torch.empty_like(inner_NF)
        grad_down, grad_gate_up = torch.zeros_like(down_EDF), torch.zeros_like(gate_up_E2FD)
        for expert, (begin, end) in enumerate(ctx.spans):
            if begin == end:
                continue
            torch.mm(grad_ND[begin:end], down_EDF[expert], out=grad_inner_NF[begin:end])
            torch.mm(grad_ND[begin:end].t(), inner_NF[begin:end], out=grad_down[expert])
        grad_hidden_N2F, grad_weight_N = ctx.ops.weighted_swiglu_grad(grad_inner_NF, gate_up_N2F, weight_N)
        grad_rows_ND = torch.empty_like(rows_ND)
        for expert, (begin, end) in enumerate(ctx.spans):
            if begin == end:
                continue
            torch.mm(grad_hidden_N2F[begin:end], gate_up_E2FD[expert], out=grad_rows_ND[begin:end])
            torch.mm(grad_hidden_N2F[begin:end].t(), rows_ND[begin:end], out=grad_gate_up[expert])
        grad_weights_TK = torch.empty_like(grad_weight_N)
        grad_weights_TK[order_N] = grad_weight_N
        return (
            ctx.ops.sum_rows(grad_rows_ND, place_TK),
            grad_weights_TK.view_as(place_TK),
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
