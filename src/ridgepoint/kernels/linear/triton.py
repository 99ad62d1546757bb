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
from ridgepoint.kernels.triton_call import on_device, takes, wants_gradient


def linear(x_TI: torch.Tensor, w_OI: Weight, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if isinstance(w_OI, DeviceWeight):
        return _product(x_TI, w_OI, bias_O, x_TI.dtype)
    return cpu.linear(x_TI, w_OI, bias_O)


def linear_f32(x_TI: torch.Tensor, w_OI: Weight, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if isinstance(w_OI, DeviceWeight):
        return _product(x_TI, w_OI, bias_O, torch.float32)
    if not takes(x_TI, w_OI) or wants_gradient(bias_O):
        return cpu.linear_f32(x_TI, w_OI, bias_O)
    if x_TI.is_cuda:
        y_TO = torch.mm(x_TI, w_OI.T, out_dtype=torch.float32)
        return y_TO if bias_O is None else y_TO.add_(bias_O)
    return _product(x_TI, w_OI, bias_O, torch.float32)


def linear_heads(x_THI: torch.Tensor, w_HOI: Weight) -> torch.Tensor:
    if isinstance(w_HOI, DeviceWeight):
        raise ConfigError("weights per head have no packed form on the GPU", hint="leave them in bfloat16")
    return cpu.linear_heads(x_THI, w_HOI)


def _product(x_TI: torch.Tensor, w: Weight, bias_O: torch.Tensor | None, out_dtype: torch.dtype) -> torch.Tensor:
    inputs, outputs = w.shape[-1], w.shape[-2]
    here = not isinstance(w, DeviceWeight) or on_device(w.codes)
    if not (here and takes(x_TI)) or x_TI.shape[1] != inputs or tuple(w.shape[:-2]) not in ((), (1,)):
        raise ConfigError(
            f"a weight of shape {tuple(w.shape)} packed for the GPU cannot take {x_TI.dtype} rows of {x_TI.shape[1]} on "
            f"{x_TI.device.type}",
            hint="packed weights serve inference in bfloat16 on CUDA",
        )
    if x_TI.shape[0] == 0:
        return x_TI.new_empty(0, outputs, dtype=out_dtype)
    kind = w.product if isinstance(w, DeviceWeight) else "bf16"
    choice = tuning.choose("linear", kind, x_TI.shape[0], (inputs, outputs), x_TI.device)
    return Product(
        x=x_TI, w=w, bias=bias_O, tile=choice.first, block_m=choice.block_m, out_dtype=out_dtype
    ).run()  # fmt: skip
