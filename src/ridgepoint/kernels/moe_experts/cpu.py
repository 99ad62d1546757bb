"""Routed experts in torch ops: rows sorted by expert, one matrix product per expert that has rows.

Experts nobody chose are never touched, forward or backward, and no weight is copied on the way. Results are combined
by a gather and a sum in the order of k, never by atomics, so a row's bits depend on its matrix products alone.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.kernels.glu.cpu import glu
from ridgepoint.kernels.moe_experts import native
from ridgepoint.kernels.packed import Packed

READS_ON_HOST = True  # how many rows each expert has


def moe_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: torch.Tensor | Packed,
    w_down_EDF: torch.Tensor | Packed,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> torch.Tensor:
    if isinstance(w_gate_up_E2FD, Packed) and isinstance(w_down_EDF, Packed):
        return native.moe_experts(
            x_TD, weights_TK, expert_ids_TK, w_gate_up_E2FD, w_down_EDF, activation, bias_gate_up_E2F, bias_down_ED
        )
    assert isinstance(w_gate_up_E2FD, torch.Tensor) and isinstance(w_down_EDF, torch.Tensor)
    dtype = x_TD.dtype
    tensors = (w_gate_up_E2FD, w_down_EDF, bias_gate_up_E2F, bias_down_ED)
    w_gu, w_dn, b_gu, b_dn = (None if w is None else w.to(dtype) for w in tensors)
    assert w_gu is not None and w_dn is not None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_TD, weights_TK, *tensors)):
        out: torch.Tensor = _Experts.apply(x_TD, weights_TK, expert_ids_TK, w_gu, w_dn, activation, b_gu, b_dn)
        return out
    if x_TD.shape[0] == 1:
        return _one_token(x_TD, weights_TK, expert_ids_TK, w_gu, w_dn, activation, b_gu, b_dn)
    rows = _Rows(expert_ids_TK, w_gu.shape[0])
    h_M2F = _grouped(x_TD.index_select(0, rows.token_M), w_gu, b_gu, rows)
    y_MD = _grouped(glu(h_M2F, activation), w_dn, b_dn, rows)
    return rows.combine(y_MD, weights_TK)


def _one_token(
    x_1D: torch.Tensor,
    weights_1K: torch.Tensor,
    expert_ids_1K: torch.Tensor,
    w_gu: torch.Tensor,
    w_dn: torch.Tensor,
    activation: Activation,
    b_gu: torch.Tensor | None,
    b_dn: torch.Tensor | None,
) -> torch.Tensor:
    """Nothing to sort or gather: the calls saved are a fifth of a layer's time at batch 1."""
    experts = expert_ids_1K[0].tolist()
    h_K2F, y_KD = (x_1D.new_empty(len(experts), w.shape[1]) for w in (w_gu, w_dn))
    for k, e in enumerate(experts):
        _product(x_1D, w_gu, b_gu, e, h_K2F[k : k + 1])
    a_KF = glu(h_K2F, activation)
    for k, e in enumerate(experts):
        _product(a_KF[k : k + 1], w_dn, b_dn, e, y_KD[k : k + 1])
    return weights_1K.to(y_KD.dtype) @ y_KD


class _Rows:
    """The M = T K (token, expert) pairs in expert order: `token_M` of each row, `spans` of each expert that has rows."""

    def __init__(self, expert_ids_TK: torch.Tensor, num_experts: int) -> None:
        self.num_tokens, self.top_k = expert_ids_TK.shape
        flat_M = expert_ids_TK.flatten()
        self.order_M = flat_M.argsort(stable=True)
        self.token_M = self.order_M // self.top_k
        counts = torch.bincount(flat_M, minlength=num_experts).tolist()
        self.spans: list[tuple[int, int, int]] = []
        start = 0
        for expert, count in enumerate(counts):
            if count:
                self.spans.append((expert, start, start + count))
                start += count

    def unsort(self, rows_MX: torch.Tensor) -> torch.Tensor:
        """Rows in expert order to [T, K, X]."""
        place_M = torch.empty_like(self.order_M)
        place_M[self.order_M] = torch.arange(len(self.order_M), device=self.order_M.device)
        return rows_MX.index_select(0, place_M).view(self.num_tokens, self.top_k, rows_MX.shape[1])

    def combine(self, y_MD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        return torch.bmm(weights_TK.to(y_MD.dtype)[:, None], self.unsort(y_MD))[:, 0]


def _grouped(x_MI: torch.Tensor, w_EOI: torch.Tensor, bias_EO: torch.Tensor | None, rows: _Rows) -> torch.Tensor:
    """Row m times the matrix of its expert."""
    out_MO = x_MI.new_empty(x_MI.shape[0], w_EOI.shape[1])
    for expert, start, stop in rows.spans:
        _product(x_MI[start:stop], w_EOI, bias_EO, expert, out_MO[start:stop])
    return out_MO


def _product(
    x_MI: torch.Tensor, w_EOI: torch.Tensor, bias_EO: torch.Tensor | None, expert: int, out_MO: torch.Tensor
) -> None:
    if bias_EO is None:
        torch.mm(x_MI, w_EOI[expert].T, out=out_MO)
    else:
        torch.addmm(bias_EO[expert], x_MI, w_EOI[expert].T, out=out_MO)


class _Experts(torch.autograd.Function):
    """The same with gradients written straight into one buffer per parameter (slicing under autograd would build a
    full-size gradient per expert). Pre-activations and outputs are kept; inputs and activations are recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        weights_TK: torch.Tensor,
        expert_ids_TK: torch.Tensor,
        w_gu: torch.Tensor,
        w_dn: torch.Tensor,
        activation: Activation,
        b_gu: torch.Tensor | None,
        b_dn: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = _Rows(expert_ids_TK, w_gu.shape[0])
        h_M2F = _grouped(x_TD.index_select(0, rows.token_M), w_gu, b_gu, rows)
        y_MD = _grouped(glu(h_M2F, activation), w_dn, b_dn, rows)
        ctx.rows, ctx.activation, ctx.has_bias = rows, activation, (b_gu is not None, b_dn is not None)
        ctx.save_for_backward(x_TD, weights_TK, w_gu, w_dn, h_M2F, y_MD)
        return rows.combine(y_MD, weights_TK)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dout_TD,) = grads
        x_TD, weights_TK, w_gu, w_dn, h_M2F, y_MD = ctx.saved_tensors
        rows: _Rows = ctx.rows
        need_w = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]

        dout_MD = dout_TD.index_select(0, rows.token_M)
        dweight_M1 = (dout_MD.float() * y_MD.float()).sum(-1, keepdim=True)
        dweights_TK = rows.unsort(dweight_M1)[..., 0].to(weights_TK.dtype)
        dy_MD = dout_MD * weights_TK.flatten()[rows.order_M, None].to(dout_MD.dtype)

        with torch.enable_grad():
            h_leaf = h_M2F.detach().requires_grad_()
            act_MF = glu(h_leaf, ctx.activation)
        da_MF = _grouped(dy_MD, w_dn.transpose(1, 2), None, rows)
        (dh_M2F,) = torch.autograd.grad(act_MF, h_leaf, da_MF)
        dx_TD = rows.unsort(_grouped(dh_M2F, w_gu.transpose(1, 2), None, rows)).sum(1)

        dw_gu = _weight_grad(dh_M2F, x_TD.index_select(0, rows.token_M), w_gu, rows) if need_w else None
        dw_dn = _weight_grad(dy_MD, act_MF.detach(), w_dn, rows) if need_w else None
        db_gu = _bias_grad(dh_M2F, w_gu, rows) if ctx.has_bias[0] else None
        db_dn = _bias_grad(dy_MD, w_dn, rows) if ctx.has_bias[1] else None
        return dx_TD, dweights_TK, None, dw_gu, dw_dn, None, db_gu, db_dn


def _weight_grad(dout_MO: torch.Tensor, x_MI: torch.Tensor, like_EOI: torch.Tensor, rows: _Rows) -> torch.Tensor:
    grad_EOI = torch.zeros_like(like_EOI)
    for expert, start, stop in rows.spans:
        torch.mm(dout_MO[start:stop].T, x_MI[start:stop], out=grad_EOI[expert])
    return grad_EOI


def _bias_grad(dout_MO: torch.Tensor, like_EOI: torch.Tensor, rows: _Rows) -> torch.Tensor:
    grad_EO = dout_MO.new_zeros(like_EOI.shape[:2])
    for expert, start, stop in rows.spans:
        grad_EO[expert] = dout_MO[start:stop].sum(0)
    return grad_EO
