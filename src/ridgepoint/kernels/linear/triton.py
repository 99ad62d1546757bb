"""The products on a GPU: packed weights by our kernels, dense ones by torch's BLAS, float32 results without a detour.

`linear_f32` of bf16 tensors keeps the float32 sums of the product; torch's path would round them to bf16 first.
"""

from __future__ import annotations

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm.launch import Product, Weight
from ridgepoint.kernels.linear import cpu
from ridgepoint.kernels.triton_call import INTERPRETED, on_device, takes, wants_gradient


def linear(x_TI: torch.Tensor, w_OI: Weight, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if isinstance(w_OI, DeviceWeight):
        return _product(x_TI, w_OI, bias_O, x_TI.dtype)
    return cpu.linear(x_TI, w_OI, bias_O)


def linear_f32(x_TI: torch.Tensor, w_OI: Weight, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if not isinstance(w_OI, DeviceWeight) and (not takes(x_TI, w_OI) or wants_gradient(bias_O)):
        return cpu.linear_f32(x_TI, w_OI, bias_O)
    out_TO = torch.empty(x_TI.shape[0], w_OI.shape[-2], dtype=torch.float32, device=x_TI.device)
    linear_f32_into(out_TO, x_TI, w_OI, bias_O)
    return out_TO


def linear_f32_into(out_TO: torch.Tensor, x_TI: torch.Tensor, w_OI: Weight, bias_O: torch.Tensor | None = None) -> None:
    if isinstance(w_OI, DeviceWeight):
        _product(x_TI, w_OI, bias_O, torch.float32, out_TO)
    elif not takes(x_TI, w_OI) or wants_gradient(bias_O):
        out_TO.copy_(cpu.linear_f32(x_TI, w_OI, bias_O))
    elif not INTERPRETED:
        torch.mm(x_TI, w_OI.T, out_dtype=torch.float32, out=out_TO)
        if bias_O is not None:
            out_TO.add_(bias_O)
    else:
        _product(x_TI, w_OI, bias_O, torch.float32, out_TO)


def linear_heads(x_THI: torch.Tensor, w_HOI: Weight) -> torch.Tensor:
    if isinstance(w_HOI, DeviceWeight):
        raise ConfigError("weights per head have no packed form on the GPU", hint="leave them in bfloat16")
    return cpu.linear_heads(x_THI, w_HOI)


def _product(
    x_TI: torch.Tensor,
    w: Weight,
    bias_O: torch.Tensor | None,
    out_dtype: torch.dtype,
    out_TO: torch.Tensor | None = None,
) -> torch.Tensor:
    inputs, outputs = w.shape[-1], w.shape[-2]
    here = not isinstance(w, DeviceWeight) or on_device(w.codes)
    if not (here and takes(x_TI)) or x_TI.shape[1] != inputs or tuple(w.shape[:-2]) not in ((), (1,)):
        raise ConfigError(
            f"a weight of shape {tuple(w.shape)} packed for the GPU cannot take {x_TI.dtype} rows of {x_TI.shape[1]} on "
            f"{x_TI.device.type}",
            hint="packed weights serve inference in bfloat16 on CUDA",
        )
    if x_TI.shape[0] == 0:
        return out_TO if out_TO is not None else x_TI.new_empty(0, outputs, dtype=out_dtype)
    kind = w.product if isinstance(w, DeviceWeight) else "bf16"
    choice = tuning.choose("linear", kind, x_TI.shape[0], (inputs, outputs), x_TI.device)
    return Product(
        x=x_TI, w=w, bias=bias_O, tile=choice.first, block_m=choice.block_m, out_dtype=out_dtype
    ).run(out_TO)  # fmt: skip
