"""Repairs to Triton 3.6's interpreter, so that a kernel means under it what it means on a GPU.

It makes loop bounds from arrays of one element, which numpy 2.4 refuses; rounds to bf16 and fp8 by adding to the mantissa
and dropping the carry (1.998 becomes 1.0); has no conversion between integers and bf16; and multiplies the bits of
bf16 as integers. And it prepares the whole language anew at every call of one device function by another, which the kernel's
own call has done: tests would take minutes.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_convert_float = interpreter._convert_float
_patch_tensor = interpreter._patch_lang_tensor
_cast = interpreter.InterpreterBuilder.cast_impl
_dot = interpreter.InterpreterBuilder.create_dot


def _to_torch(data: np.ndarray, dtype: tl.dtype) -> torch.Tensor:
    raw = np.ascontiguousarray(data).view(f"i{data.dtype.itemsize}" if data.dtype.itemsize > 1 else "u1")
    return torch.from_numpy(raw.copy()).view(TORCH[dtype])


def convert_float(data: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    """Bits of `target`, rounded to nearest even; fp8 saturates, as the GPU's instruction does."""
    if source not in TORCH or target not in TORCH or rounding == interpreter._ir.ROUNDING_MODE.RTZ:
        return _convert_float(data, source, target, rounding)
    wide = _to_torch(data, source)
    if target.primitive_bitwidth == 8:
        largest = torch.finfo(TORCH[target]).max
        wide = wide.float().clamp(-largest, largest)
    bits = wide.to(TORCH[target]).view(BITS[target.primitive_bitwidth // 8]).numpy()
    return bits.view(f"u{bits.dtype.itemsize}").reshape(data.shape)


def cast(self: interpreter.InterpreterBuilder, source: interpreter.TensorHandle, target: tl.dtype) -> object:
    """Integers and bf16 by way of float32."""
    kinds = source.dtype.scalar, target.scalar
    if tl.bfloat16 in kinds and any(kind.is_int() for kind in kinds):
        return _cast(self, _cast(self, source, tl.float32), target)
    return _cast(self, source, target)


def create_dot(self: interpreter.InterpreterBuilder, a: object, b: object, d: object, *rest: object) -> object:
    wide = [interpreter.TensorHandle(x.data, x.dtype) for x in (a, b)]
    for x in wide:
        if x.dtype == tl.bfloat16:
            x.data, x.dtype = _to_torch(x.data, tl.bfloat16).float().numpy(), tl.float32
    return _dot(self, *wide, d, *rest)


def patch_tensor(tensor: type, scope: object) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def call_device_function(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    languages = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
    if any(tl.core.is_builtin(language.arange) for language in languages):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def install() -> None:
    interpreter._convert_float = convert_float
    interpreter._patch_lang_tensor = patch_tensor
    builder = interpreter.InterpreterBuilder
    builder.cast_impl, builder.create_dot = cast, create_dot
    interpreter.InterpretedFunction.__call__ = call_device_function
