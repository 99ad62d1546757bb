"""Definition of the routed experts, one token and one expert at a time."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.kernels.glu.reference import glu


def moe_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: torch.Tensor,
    w_down_EDF: torch.Tensor,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> torch.Tensor:
    wide = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
    rows = []
    for t in range(x_TD.shape[0]):
        y_D = torch.zeros(w_down_EDF.shape[1], dtype=wide, device=x_TD.device)
        for k in range(expert_ids_TK.shape[1]):
            e = int(expert_ids_TK[t, k])
            h_2F = w_gate_up_E2FD[e].to(wide) @ x_TD[t].to(wide)
            if bias_gate_up_E2F is not None:
                h_2F = h_2F + bias_gate_up_E2F[e].to(wide)
            out_D = w_down_EDF[e].to(wide) @ glu(h_2F, activation)
            if bias_down_ED is not None:
                out_D = out_D + bias_down_ED[e].to(wide)
            y_D = y_D + weights_TK[t, k].to(wide) * out_D
        rows.append(y_D)
    return torch.stack(rows).to(x_TD.dtype) if rows else x_TD.new_zeros(0, w_down_EDF.shape[1])
