"""Packed weights: a matrix (or one per expert or head) in the layout the native kernels read.

Layout: [matrix][panel][k-step][256 bytes], a panel being 64 outputs side by side; a gated projection's panel holds 32
gate columns and the 32 up columns of the same features. Padding is zero. The bytes never leave the process except
through the pack cache, which is keyed by the layout's version.

`bf16-12` is bf16 to the bit: of the exponents in a panel all but a few are among sixteen, so twelve bits hold a weight, and what
memory binds takes three quarters of the time. A matrix whose exponents are too many has to be packed as bf16.

A format says how weights are stored and, by the ending `-a8`, that integer codes meet activations rounded to 8 bits (one
scale per row and group of inputs, chosen from the row alone, so a token's result stays its own). That is a different
function, about twice as fast where products bind; without it activations keep 16 bits.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native

DTYPES = {torch.float32: native.F32, torch.bfloat16: native.BF16}


# Inputs per scale of each format; int8 has one scale per output.
_WEIGHT_GROUPS = {"f32": 0, "bf16": 0, "bf16-12": 0, "int8": 0, "int8-32": 32, "int8-128": 128, "int4-32": 32, "int4-128": 128, "mxfp4": 32, "fp8": 128}  # fmt: skip
_INTEGER = tuple(fmt for fmt in _WEIGHT_GROUPS if fmt.startswith(("int8", "int4", "mxfp4")))
A8 = "-a8"  # the same weights, multiplied with activations rounded to 8 bits
WHOLE = ("f32", "bf16", "bf16-12")  # formats without codes and scales
GROUPS = _WEIGHT_GROUPS | {fmt + A8: _WEIGHT_GROUPS[fmt] for fmt in _INTEGER}
ACTIVATION_GROUP = 128  # inputs per scale of an 8-bit activation where weights have no groups
SMALLEST_SCALED = 2.0**-100  # a group of activations without anything larger counts as zero


class ExponentsError(ConfigError):
    """A matrix has too many exponents for its format."""


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
    stacked: bool = False  # packed from [matrices, outputs, inputs]

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_matrices, self.outputs, self.inputs)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.num_matrices * self.outputs * self.inputs)

    def over(self, data: np.ndarray) -> Packed:
        """The same matrices in other memory, which holds their bytes (and may be read-only)."""
        if data.nbytes != self.nbytes or data.ctypes.data % 64:
            raise ConfigError(f"{data.nbytes} bytes at {data.ctypes.data:#x} do not hold {self.nbytes} aligned ones")
        struct = type(self.struct).from_buffer_copy(self.struct)
        struct.data = data.ctypes.data
        return replace(self, data=data, struct=struct)

    def dense(self) -> torch.Tensor:
        """The weights this holds, as float32 [matrices, outputs, inputs]: what the slow twin multiplies with."""
        return torch.stack([self.dense_matrix(index) for index in range(self.num_matrices)])

    def dense_matrix(self, index: int) -> torch.Tensor:
        """One of them, float32 [outputs, inputs]."""
        out = torch.empty(self.outputs, self.inputs, dtype=torch.float32)
        native.library().rp_unpack(self.address, index, out.data_ptr(), self.inputs)
        return out


def pack(
    weight: torch.Tensor, fmt: str | None = None, *, glu: bool = False, scales: torch.Tensor | None = None
) -> Packed:
    """Pack [outputs, inputs] or [matrices, outputs, inputs]. `glu`: outputs are gate rows, then up rows.

    Formats with scales round to nearest. `scales` ([matrices,] outputs, groups), when given, are those the weight was
    quantised with already, and its codes are then recovered exactly; otherwise they are chosen here by the largest
    magnitude of each group. Without `fmt` the numbers stay what they are, in the format of `whole_format` that holds them.
    """
    if fmt is None:
        try:
            return pack(weight, whole_format(weight.dtype), glu=glu)
        except ExponentsError:
            return pack(weight, "bf16", glu=glu)
    matrices = weight.detach()[None] if weight.dim() == 2 else weight.detach()
    if matrices.dim() != 3 or matrices.dtype not in DTYPES:
        raise ConfigError(f"cannot pack a {matrices.dtype} tensor of shape {tuple(weight.shape)}")
    if matrices.stride(2) != 1:
        matrices = matrices.contiguous()
    packed = unfilled(fmt, *matrices.shape, glu=glu, stacked=weight.dim() == 3)
    for index, matrix in enumerate(matrices):
        pack_matrix(packed, index, matrix, None if scales is None else scales.reshape(*matrices.shape[:2], -1)[index])
    return packed


def whole_format(dtype: torch.dtype) -> str:
    return native.whole_format(str(dtype).removeprefix("torch."))


def unfilled(fmt: str, count: int, outputs: int, inputs: int, *, glu: bool = False, stacked: bool = False) -> Packed:
    """Room for `count` matrices; `pack_matrix` or `pack_codes` fills each. `glu`: outputs are gate rows, then up rows."""
    if fmt not in GROUPS:
        raise ConfigError(f"weight format {fmt!r} is unknown; allowed: {', '.join(GROUPS)}")
    lib = native.library()
    struct = native.PackedWeight(
        format=native.FORMATS[fmt if fmt in WHOLE else fmt.split("-")[0]], glu=glu, num_matrices=count, outputs=outputs, inputs=inputs,
        group=GROUPS[fmt], activation_bits=8 if fmt.endswith(A8) else 16,
    )  # fmt: skip
    num_bytes = lib.rp_packed_bytes(ctypes.addressof(struct))
    if num_bytes < 0:
        raise ConfigError(f"cannot pack shape {(count, outputs, inputs)} as {fmt!r} (glu={glu})")
    data = native.allocate(num_bytes)
    struct.data = data.ctypes.data
    return Packed(
        format=fmt,
        num_matrices=count,
        outputs=outputs,
        inputs=inputs,
        glu=glu,
        data=data,
        struct=struct,
        stacked=stacked,
    )


def pack_matrix(packed: Packed, index: int, w_OI: torch.Tensor, scales_ON: torch.Tensor | None = None) -> None:
    """Matrix `index` from numbers. Formats with scales round to nearest, by `scales_ON` or by the largest magnitudes.

    Raises `ExponentsError` where bf16-12 cannot hold it."""
    scale = None
    if packed.format not in WHOLE:
        scale = (choose_scales(w_OI, packed.format) if scales_ON is None else scales_ON.detach().float()).contiguous()
    _rp_pack(packed, index, w_OI, DTYPES[w_OI.dtype], scale)


def pack_codes(packed: Packed, index: int, codes_OI: torch.Tensor, scales_ON: torch.Tensor) -> None:
    """Matrix `index` from codes of one byte each (int8 for integers, uint8 for e2m1 and e4m3), which are kept as they are.

    `scales_ON` are float32, one per group of the format, in numbers that its scales can hold.
    """
    groups = -(-packed.inputs // GROUPS[packed.format]) if GROUPS[packed.format] else 1
    if codes_OI.shape != (packed.outputs, packed.inputs) or scales_ON.shape != (packed.outputs, groups):
        raise ConfigError(
            f"codes {tuple(codes_OI.shape)} with scales {tuple(scales_ON.shape)} do not fill {packed.shape[1:]} in "
            f"{packed.format}, which has {groups} scales a row"
        )
    if codes_OI.dtype not in (torch.int8, torch.uint8) or packed.format in WHOLE:
        raise ConfigError(f"{packed.format} does not take codes of {codes_OI.dtype}")
    _rp_pack(packed, index, codes_OI, native.CODE, scales_ON.float().contiguous())


def _rp_pack(packed: Packed, index: int, source_OI: torch.Tensor, dtype: int, scale: torch.Tensor | None) -> None:
    if source_OI.stride(1) != 1:
        source_OI = source_OI.contiguous()
    code = native.library().rp_pack(
        packed.address, packed.data.ctypes.data, index, source_OI.data_ptr(), source_OI.stride(0), dtype,
        None if scale is None else scale.data_ptr(), 0 if scale is None else scale.stride(0),
    )  # fmt: skip
    if code == 1:
        raise ExponentsError(f"a matrix has too many exponents for {packed.format}", hint="pack it as bf16")
    native.check(code)


def plain_copy(packed: Packed) -> Packed:
    """The same bf16 weights in the plain format."""
    copy = unfilled("bf16", *packed.shape, glu=packed.glu, stacked=packed.stacked)
    for index in range(packed.num_matrices):
        pack_matrix(copy, index, packed.dense_matrix(index).bfloat16())
    return copy


def choose_scales(w_OI: torch.Tensor, fmt: str) -> torch.Tensor:
    """Round-to-nearest scales [outputs, groups], float32, in the precision the format stores them in."""
    outputs, inputs = w_OI.shape
    group = GROUPS[fmt] or inputs
    w = torch.nn.functional.pad(w_OI, (0, -inputs % group)) if inputs % group else w_OI.contiguous()
    low, high = (bound.float() for bound in torch.aminmax(w.view(outputs, -1, group), dim=-1))
    largest = torch.maximum(high, -low).abs()
    if fmt.startswith("int8"):
        return largest / 127
    if fmt.startswith("int4"):  # the larger side gets -8: sixteen codes are not symmetric
        return (torch.where(high > -low, -high, -low) / 8).to(torch.bfloat16).float()
    if fmt.startswith("mxfp4"):  # OCP microscaling: the largest value's power of two, less that of the largest code
        return torch.exp2((torch.log2(largest.clamp(min=2.0**-120)).floor() - 2).clamp(min=-125))
    return largest / 448


def round_activations(x_TI: torch.Tensor, fmt: str) -> torch.Tensor:
    """What `fmt` multiplies instead of `x_TI`, float32: for `-a8` formats, per row and group of inputs, the largest
    magnitude becomes 127 and the rest the nearest whole numbers (ties to even). Other formats take rows as they are."""
    x = x_TI.float()
    if not fmt.endswith(A8):
        return x
    inputs = x.shape[-1]
    group = GROUPS[fmt] or ACTIVATION_GROUP
    grouped = torch.nn.functional.pad(x, (0, -inputs % group)).unflatten(-1, (-1, group))
    largest = grouped.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > SMALLEST_SCALED, largest, torch.inf)
    codes = (grouped * (127 / largest)).round()
    scale = torch.where(largest == torch.inf, 0.0, largest / 127)
    return (codes * scale).flatten(-2)[..., :inputs]
