"""Routed experts on a GPU: rows grouped by expert on the device (few of them by the products themselves), two products, one
weighted sum. No step waits for the host.

Every launch has a size that follows from shapes alone, so a step of them can be captured in a graph. Given the same tile
(`tuning` picks it by T K / E and the format) a token's bits do not depend on its company: rows never meet inside a product,
inputs are summed in one fixed order, and the K rows of a token in the order of k. Across tiles the last bits may differ.
Training, and types other than bf16, go to torch's path.
"""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm.few_pairs import ROOM, FewPairs
from ridgepoint.kernels.gemm.launch import Product, Weight
from ridgepoint.kernels.moe_experts import cpu
from ridgepoint.kernels.moe_experts.combine import summed
from ridgepoint.kernels.moe_experts.groups import Groups, group_rows
from ridgepoint.kernels.moe_experts.unsummed import Delta, UnsummedRows
from ridgepoint.kernels.triton_call import on_device, takes, wants_gradient

OTHER_TYPES = cpu  # where activations or weights that are not bf16 go


def moe_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: Weight,
    w_down_EDF: Weight,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> torch.Tensor:
    return summed(
        expert_rows(
            x_TD, weights_TK, expert_ids_TK, w_gate_up_E2FD, w_down_EDF, activation, bias_gate_up_E2F, bias_down_ED
        )
    )


def expert_rows(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: Weight,
    w_down_EDF: Weight,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> Delta:
    plain = [w for w in (w_gate_up_E2FD, w_down_EDF) if isinstance(w, torch.Tensor)]
    if not takes(x_TD, *plain) or wants_gradient(weights_TK, bias_gate_up_E2F, bias_down_ED):
        if isinstance(w_gate_up_E2FD, DeviceWeight) or isinstance(w_down_EDF, DeviceWeight):
            raise ConfigError(
                f"experts packed for the GPU cannot take {x_TD.dtype} activations on {x_TD.device.type}",
                hint="they serve inference in bfloat16 on CUDA",
            )
        return OTHER_TYPES.moe_experts(
            x_TD, weights_TK, expert_ids_TK, w_gate_up_E2FD, w_down_EDF, activation, bias_gate_up_E2F, bias_down_ED
        )
    if x_TD.shape[0] == 0:
        return x_TD.new_empty(0, w_down_EDF.shape[1])
    choice = _tiles(x_TD, expert_ids_TK, w_gate_up_E2FD, w_down_EDF)
    groups: Groups | FewPairs
    if expert_ids_TK.numel() <= ROOM and _finds_rows_itself(choice, w_gate_up_E2FD):
        groups = FewPairs(expert_ids=expert_ids_TK.reshape(-1))
    else:
        groups = group_rows(expert_ids_TK, w_gate_up_E2FD.shape[0], choice.block_m, choice.unit, choice.by_roles)
    h_MF = Product(
        x=x_TD, w=w_gate_up_E2FD, bias=bias_gate_up_E2F, tile=choice.first, block_m=choice.block_m, out_dtype=x_TD.dtype,
        groups=groups, top_k=expert_ids_TK.shape[1], activation=activation,
    ).run()  # fmt: skip
    y_MD = Product(
        x=h_MF, w=w_down_EDF, bias=bias_down_ED, tile=choice.second, block_m=choice.block_m, out_dtype=x_TD.dtype,
        groups=groups,
    ).run()  # fmt: skip
    pair_row = groups.pair_row if isinstance(groups, Groups) else None
    return UnsummedRows(y_MD=y_MD, weights_TK=weights_TK.contiguous(), pair_row=pair_row)


def _finds_rows_itself(choice: tuning.ExpertTiles, gate_up: Weight) -> bool:
    """Whether both products run in the kernel that can do without a list of rows."""
    as_codes = isinstance(gate_up, DeviceWeight) and gate_up.product == "fp8-a8"
    return not as_codes and choice.first.kernel == choice.second.kernel == "weights"


def _tiles(x_TD: torch.Tensor, expert_ids_TK: torch.Tensor, gate_up: Weight, down: Weight) -> tuning.ExpertTiles:
    kinds = {w.product if isinstance(w, DeviceWeight) else "bf16" for w in (gate_up, down)}
    if len(kinds) != 1 or not on_device(*(w.codes for w in (gate_up, down) if isinstance(w, DeviceWeight))):
        raise ConfigError(f"gate-up and down weights must share a format and a device, got {', '.join(sorted(kinds))}")
    num_experts, outputs, inputs = gate_up.shape
    rows = expert_ids_TK.numel() / num_experts
    tiles: tuning.ExpertTiles = tuning.choose("experts", kinds.pop(), rows, (inputs, outputs), x_TD.device)
    return tiles
