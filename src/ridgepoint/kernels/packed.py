"""Packed weights: a matrix (or one per expert or head) in the layout the native kernels read.

Layout: [matrix][panel][k-step][256 bytes], a panel being 64 outputs side by side; a gated projection's panel holds 32
gate columns and the 32 up columns of the same features. Padding is zero. The bytes never leave the process except
through the pack cache, which is keyed by the layout's version.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native

DTYPES = {torch.float32: native.F32, torch.bfloat16: native.BF16}


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """`num_matrices` matrices [outputs, inputs] in `format`, ready for the native kernels."""

    format: str
    num_matrices: int
    outputs: int
    inputs: int
    glu: bool
    data: np.ndarray
    struct: ctypes.Structure = field(repr=False)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_matrices, self.outputs, self.inputs)

    def dense(self) -> torch.Tensor:
        """The weights this holds, as float32 [matrices, outputs, inputs]: what the slow twin multiplies with."""
        out = torch.empty(self.shape, dtype=torch.float32)
        for index in range(self.num_matrices):
            native.library().rp_unpack(self.address, index, out[index].data_ptr(), self.inputs)
        return out


def pack(weight: torch.Tensor, fmt: str | None = None, *, glu: bool = False) -> Packed:
    """Pack [outputs, inputs] or [matrices, outputs, inputs]. `glu`: outputs are gate rows, then up rows."""
    matrices = weight.detach()[None] if weight.dim() == 2 else weight.detach()
    if matrices.dim() != 3 or matrices.dtype not in DTYPES:
        raise ConfigError(f"cannot pack a {matrices.dtype} tensor of shape {tuple(weight.shape)}")
    fmt = fmt or ("f32" if matrices.dtype == torch.float32 else "bf16")
    if matrices.stride(2) != 1:
        matrices = matrices.contiguous()
    count, outputs, inputs = matrices.shape
    lib = native.library()
    struct = native.PackedWeight(
        format=native.FORMATS[fmt], glu=glu, num_matrices=count, outputs=outputs, inputs=inputs, group=0
    )
    num_bytes = lib.rp_packed_bytes(ctypes.addressof(struct))
    if num_bytes < 0:
        raise ConfigError(f"cannot pack shape {tuple(weight.shape)} as {fmt!r} (glu={glu})")
    data = native.allocate(num_bytes)
    struct.data = data.ctypes.data
    for index in range(count):
        matrix = matrices[index]
        lib.rp_pack(
            ctypes.addressof(struct), data.ctypes.data, index, matrix.data_ptr(), matrix.stride(0),
            DTYPES[matrix.dtype], None, 0,
        )  # fmt: skip
    return Packed(format=fmt, num_matrices=count, outputs=outputs, inputs=inputs, glu=glu, data=data, struct=struct)
