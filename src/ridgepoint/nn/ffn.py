"""Feed-forwards: dense, and mixture of experts with its router and shared expert."""

from __future__ import annotations

import torch
from torch import nn

from ridgepoint.catalog.spec import DenseSpec, MoeSpec, RouterSpec, SharedExpertSpec
from ridgepoint.kernels.add_shared import add_shared
from ridgepoint.kernels.glu import glu
from ridgepoint.kernels.linear import linear_f32
from ridgepoint.kernels.moe_experts import expert_rows
from ridgepoint.kernels.moe_experts.unsummed import Delta
from ridgepoint.kernels.route import route
from ridgepoint.nn.linear import Linear, parameter


class DenseFfn(nn.Module):
    """`down(act(gate) * up)`, gate rows before up rows in one projection."""

    def __init__(self, spec: DenseSpec, d_model: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self._activation = spec.activation
        self.gate_up = Linear(d_model, 2 * spec.width, bias=spec.bias, dtype=dtype, device=device)
        self.down = Linear(spec.width, d_model, bias=spec.bias, dtype=dtype, device=device)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.down(glu(self.gate_up(x_TD), self._activation))


class Router(nn.Module):
    """Logits in float32. `correction_E` (a buffer: no gradient reaches it) moves the choice of experts only.

    In training mode, where every row of every layer is wanted, `load_E` counts the tokens each expert received since `take_load`
    last asked. Serving counts none.
    """

    correction_E: torch.Tensor | None
    load_E: torch.Tensor

    def __init__(
        self, spec: RouterSpec, top_k: int, d_model: int, num_experts: int, *, device: torch.device | str
    ) -> None:
        super().__init__()
        self.spec, self.top_k = spec, top_k
        self.weight = nn.Parameter(torch.empty(num_experts, d_model, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(num_experts, dtype=torch.float32, device=device)) if spec.bias else None
        correction = torch.zeros(num_experts, dtype=torch.float32, device=device) if spec.correction_bias else None
        self.register_buffer("correction_E", correction)
        self.register_buffer("load_E", torch.zeros(num_experts, dtype=torch.int64, device=device), persistent=False)

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`weights_TK` float32 and `expert_ids_TK`."""
        weights_TK, ids_TK = route(self.logits(x_TD), self.correction_E, self.spec, self.top_k)
        if self.training:
            self.load_E += torch.bincount(ids_TK.flatten(), minlength=self.load_E.numel())
        return weights_TK, ids_TK

    def logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        return linear_f32(x_TD, self.weight, self.bias)

    def take_load(self) -> torch.Tensor:
        """Tokens per expert since the last call, as int64 [E]; the counter starts again from zero."""
        load_E = self.load_E.clone()
        self.load_E.zero_()
        return load_E


class Experts(nn.Module):
    """Weights of all routed experts, stacked."""

    def __init__(self, spec: MoeSpec, d_model: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        e, f = spec.num_experts, spec.width
        self._activation = spec.activation
        self.w_gate_up_E2FD = parameter(e, 2 * f, d_model, dtype=dtype, device=device)
        self.w_down_EDF = parameter(e, d_model, f, dtype=dtype, device=device)
        self.bias_gate_up_E2F = parameter(e, 2 * f, dtype=dtype, device=device) if spec.bias else None
        self.bias_down_ED = parameter(e, d_model, dtype=dtype, device=device) if spec.bias else None

    def forward(self, x_TD: torch.Tensor, weights_TK: torch.Tensor, expert_ids_TK: torch.Tensor) -> Delta:
        """A token's rows may be left to be summed by the addition that follows."""
        return expert_rows(
            x_TD,
            weights_TK,
            expert_ids_TK,
            self.w_gate_up_E2FD,
            self.w_down_EDF,
            self._activation,
            self.bias_gate_up_E2F,
            self.bias_down_ED,
        )


class SharedExpert(nn.Module):
    """The feed-forward every token visits, with the gate some families put on it."""

    def __init__(
        self, shared: SharedExpertSpec, moe: MoeSpec, d_model: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        dense = DenseSpec(width=shared.width, activation=moe.activation, bias=False)
        self.ffn = DenseFfn(dense, d_model, dtype=dtype, device=device)
        self.gate = Linear(d_model, 1, bias=False, dtype=dtype, device=device) if shared.gated else None

    def forward(self, x_TD: torch.Tensor, routed_TD: Delta) -> torch.Tensor:
        return add_shared(routed_TD, self.ffn(x_TD), None if self.gate is None else self.gate(x_TD))


class MoeFfn(nn.Module):
    """Router, routed experts, and the shared expert if the model has one."""

    def __init__(self, spec: MoeSpec, d_model: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.router = Router(spec.router, spec.top_k, d_model, spec.num_experts, device=device)
        self.experts = Experts(spec, d_model, dtype=dtype, device=device)
        shared = spec.shared
        self.shared = SharedExpert(shared, spec, d_model, dtype=dtype, device=device) if shared else None

    def forward(self, x_TD: torch.Tensor) -> Delta:
        weights_TK, expert_ids_TK = self.router(x_TD)
        y_TD = self.experts(x_TD, weights_TK, expert_ids_TK)
        return y_TD if self.shared is None else self.shared(x_TD, y_TD)
