"""The products by the native kernels: packed weights only."""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.tensor_call import DTYPES, address, call, copied, empty, heads, rows, submit, takes


def linear(x_TI: torch.Tensor, w: Packed, bias_O: torch.Tensor | None, out_dtype: torch.dtype) -> torch.Tensor:
    if not takes(x_TI) or (x_TI.dtype == torch.float32 and w.format != "f32") or x_TI.shape[1] != w.inputs:
        raise ConfigError(
            f"a packed {w.format} weight of {w.inputs} inputs cannot take {x_TI.dtype} rows of {x_TI.shape[1]}",
            hint="packed weights serve inference on the CPU, in the type they were packed for",
        )
    x_TI, y_TO = rows(x_TI), empty(x_TI.shape[0], w.outputs, dtype=out_dtype)
    if bias_O is not None and bias_O.dtype != torch.float32:
        bias_O = copied(bias_O.float(), "a bias that is not float32")
    call(
        native.LinearOp, x_TI.shape[0], keep=(w,), weight=w.address, x=address(x_TI), y=address(y_TO),
        bias=address(bias_O), x_stride=x_TI.stride(0), y_stride=y_TO.stride(0), x_dtype=DTYPES[x_TI.dtype],
        y_dtype=DTYPES[out_dtype],
    )  # fmt: skip
    return y_TO


def linear_heads(x_THI: torch.Tensor, w: Packed) -> torch.Tensor:
    """Matrix h of `w` acts on head h."""
    if not takes(x_THI) or (x_THI.dtype == torch.float32 and w.format != "f32"):
        raise ConfigError(f"a packed {w.format} weight cannot take {x_THI.dtype} heads")
    x_THI = heads(x_THI)
    y_THO = empty(x_THI.shape[0], w.num_matrices, w.outputs, dtype=x_THI.dtype)
    submit(heads_operator(x_THI, w, y_THO), keep=(w,))
    return y_THO


def heads_operator(x_THI: torch.Tensor, w: Packed, y_THO: torch.Tensor) -> Any:
    """`linear_heads` into `y_THO`, not run yet."""
    return native.op(
        native.LinearOp, x_THI.shape[0], weight=w.address, x=address(x_THI), y=address(y_THO), heads=1,
        x_head_stride=x_THI.stride(1), x_stride=x_THI.stride(0), y_stride=y_THO.stride(0), x_dtype=DTYPES[x_THI.dtype],
        y_dtype=DTYPES[y_THO.dtype],
    )  # fmt: skip
