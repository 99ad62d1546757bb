"""Low-precision weights as the Triton kernels read them: codes in the tensor cores' order, scales beside them.

Codes lie in 32-bit words, [matrices, parts, rows, words]. Parts are gate and up of a gated projection, else one. Each row
is cut into blocks of 128 inputs, zero-padded, and within a block the inputs are ordered (q, s, h, b) where the plain order is
(s, h, q, b): a lane of a matrix instruction owns the inputs 16 s + 8 h + 2 q + b of one q, so what it needs lies together and
reaches it in wide loads. Reordering changes no value; `dense` undoes it.

`fp8-a8` keeps what `fp8` keeps, to the bit, and is multiplied as it is with activations rounded to fp8 (`gemm.quantise`); the
others become bfloat16 in registers.

Scales lie [matrices, parts, groups, rows], one per group of inputs and per `scale_rows` rows: float32 (fp8, int8), bfloat16
(int4) or a power of two as its biased exponent (mxfp4). A padded input has code zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.packed import A8, GROUPS, choose_scales

BLOCK = 128
FORMATS = ("fp8", "fp8-a8", "int8", "int8-32", "int8-128", "int4-32", "int4-128", "mxfp4")
FP8_BLOCK_ROWS = 128
FOUR_BITS = ("int4", "mxfp4")
SCALE_DTYPES = {"fp8": torch.float32, "int8": torch.float32, "int4": torch.bfloat16, "mxfp4": torch.uint8}
ZERO_CODES = {"int8": 128, "int4": 8}  # integers are stored without sign; every other code of zero is 0
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MXFP4_MAX_EXPONENT = 128  # biased: the kernel multiplies by 2^(exponent - 1), which bfloat16 must hold


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceWeight:
    """`num_matrices` matrices [outputs, inputs] in `format`. With `glu`, outputs are gate rows, then up rows."""

    format: str
    num_matrices: int
    outputs: int
    inputs: int
    glu: bool
    stacked: bool
    codes: torch.Tensor
    scales: torch.Tensor
    scale_rows: int  # rows that share a scale

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_matrices, self.outputs, self.inputs)

    @property
    def num_parts(self) -> int:
        return 2 if self.glu else 1

    @property
    def rows(self) -> int:
        """Outputs of one part."""
        return self.outputs // self.num_parts

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0: all of them."""
        return GROUPS[self.format.removesuffix(A8)]

    @property
    def kind(self) -> str:
        """The format without its group."""
        return self.format.split("-")[0]

    @property
    def product(self) -> str:
        """Which products there are of it: the kind, with `-a8` where activations are rounded."""
        return self.kind + (A8 if self.format.endswith(A8) else "")

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.num_matrices * self.outputs * self.inputs)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dense(self) -> torch.Tensor:
        """The weights this holds, as float32 [matrices, outputs, inputs]: what the slow twin multiplies with."""
        values = torch.stack([self._dense_matrix(index) for index in range(self.num_matrices)])
        return values

    def _dense_matrix(self, index: int) -> torch.Tensor:
        codes = _from_words(self.codes[index].flatten(0, 1), self.kind)
        values = _values(codes, self.kind)[:, : self.inputs]
        scales_PGR = self.scales[index].to(torch.int32 if self.kind == "mxfp4" else torch.float32)
        scales = scales_PGR.repeat_interleave(self.scale_rows, 2)[..., : self.rows].transpose(1, 2).flatten(0, 1)
        wide = scales.repeat_interleave(self.group or self.inputs, 1)[:, : self.inputs]
        return torch.ldexp(values, wide - 127) if self.kind == "mxfp4" else values * wide


def pack_for_device(
    weight: torch.Tensor, fmt: str, *, glu: bool = False, scales: torch.Tensor | None = None
) -> DeviceWeight:
    """Pack [outputs, inputs] or [matrices, outputs, inputs], on the device it is on, matrix by matrix.

    Values round to nearest. `scales` ([matrices,] outputs, groups), when given, are those the weight was quantised with
    already, and its codes are then recovered exactly; fp8 scales may also be given per block ([matrices,] blocks, groups) of
    128 outputs of a part. Otherwise they are chosen here by the largest magnitude of each group (fp8: of each 128 x 128 block).
    """
    matrices = weight.detach()[None] if weight.dim() == 2 else weight.detach()
    if matrices.dim() != 3 or not matrices.is_floating_point():
        raise ConfigError(f"cannot pack a {weight.dtype} tensor of shape {tuple(weight.shape)}")
    count, outputs, inputs = matrices.shape
    packed = unfilled_for_device(fmt, count, outputs, inputs, glu=glu, stacked=weight.dim() == 3, device=weight.device)
    given = None if scales is None else scales.detach().reshape(count, -1, scales.shape[-1])
    for index in range(count):
        fill_matrix(packed, index, matrices[index], None if given is None else given[index])
    return packed


def unfilled_for_device(
    fmt: str, count: int, outputs: int, inputs: int, *, glu: bool = False, stacked: bool = False,
    device: torch.device | str,
) -> DeviceWeight:  # fmt: skip
    """Room for `count` matrices; `fill_matrix` or `fill_codes` fills each."""
    if fmt not in FORMATS:
        raise ConfigError(f"weight format {fmt!r} has no GPU kernel; allowed: {', '.join(FORMATS)}")
    parts = 2 if glu else 1
    if outputs % parts:
        raise ConfigError(f"a gated projection has as many gate as up rows, got {outputs} together")
    kind, group = fmt.split("-")[0], GROUPS[fmt.removesuffix(A8)] or inputs
    bits, scale_rows = (4 if kind in FOUR_BITS else 8), (FP8_BLOCK_ROWS if kind == "fp8" else 1)
    rows, words = outputs // parts, -(-inputs // BLOCK) * BLOCK * bits // 32
    stored = (count, parts, -(-inputs // group), -(-rows // scale_rows))
    return DeviceWeight(
        format=fmt, num_matrices=count, outputs=outputs, inputs=inputs, glu=glu, stacked=stacked, scale_rows=scale_rows,
        codes=torch.empty(count, parts, rows, words, dtype=torch.int32, device=device),
        scales=torch.empty(stored, dtype=SCALE_DTYPES[kind], device=device),
    )  # fmt: skip


def fill_matrix(packed: DeviceWeight, index: int, w_OI: torch.Tensor, scales: torch.Tensor | None = None) -> None:
    """Matrix `index` from numbers, by scales [outputs or fp8 blocks, groups] or by those the largest magnitudes ask for."""
    w_OI = w_OI.to(packed.device)
    if scales is None:
        by_block = packed.scale_rows > 1
        scales = _block_scales(w_OI, packed.num_parts) if by_block else choose_scales(w_OI, packed.format)
    stored_PGR = _stored_scales(packed, scales.to(packed.device).float())
    wide = stored_PGR.transpose(1, 2).repeat_interleave(packed.scale_rows, 1)[:, : packed.rows].flatten(0, 1)
    wide = wide.repeat_interleave(packed.group or packed.inputs, 1)[:, : packed.inputs]
    _store(packed, index, _codes(w_OI.float(), wide, packed.kind), stored_PGR)


def fill_codes(packed: DeviceWeight, index: int, codes_OI: torch.Tensor, scales_ON: torch.Tensor) -> None:
    """Matrix `index` from codes of one byte each (int8 for integers, uint8 for e2m1 and e4m3), which are kept as they are.

    `scales_ON` are one per output and group, in numbers that the format's scales can hold. fp8 keeps one per 128 x 128 block:
    scales that differ within one are refused.
    """
    groups = packed.scales.shape[2]
    if codes_OI.shape != packed.shape[1:] or codes_OI.dtype not in (torch.int8, torch.uint8):
        raise ConfigError(f"codes {codes_OI.dtype} {tuple(codes_OI.shape)} do not fill {packed.shape[1:]}")
    if scales_ON.shape != (packed.outputs, groups):
        raise ConfigError(
            f"scales {tuple(scales_ON.shape)} do not fit {packed.shape[1:]} in {packed.format}: {groups} a row"
        )
    codes = codes_OI.to(packed.device).int() + ZERO_CODES.get(packed.kind, 0)
    _store(packed, index, codes, _stored_scales(packed, scales_ON.to(packed.device).float()))


def _stored_scales(packed: DeviceWeight, scales: torch.Tensor) -> torch.Tensor:
    """[parts, groups, rows or blocks] float32 from one scale per output or per block of a part's outputs."""
    by_part = scales.view(packed.num_parts, -1, scales.shape[1])
    if packed.scale_rows > 1 and len(scales) == packed.outputs and packed.rows != packed.scales.shape[3]:
        first = by_part[:, :: packed.scale_rows]
        if not torch.equal(first.repeat_interleave(packed.scale_rows, 1)[:, : packed.rows], by_part):
            raise ConfigError(
                f"{packed.format} on a GPU has one scale per 128 x 128 block; these differ within a block"
            )
        by_part = first
    return by_part.transpose(1, 2).contiguous()


def _store(packed: DeviceWeight, index: int, codes_OI: torch.Tensor, scales_PGR: torch.Tensor) -> None:
    kind = packed.kind
    padded = torch.nn.functional.pad(codes_OI, (0, -packed.inputs % BLOCK), value=ZERO_CODES.get(kind, 0))
    packed.codes[index].copy_(_to_words(padded, kind).view(packed.codes.shape[1:]))
    packed.scales[index].copy_(_exponents(scales_PGR) if kind == "mxfp4" else scales_PGR)


def _block_scales(w_OI: torch.Tensor, parts: int) -> torch.Tensor:
    """[blocks of each part in turn, groups]: one scale per 128 x 128 block, as publishers of fp8 checkpoints choose it."""
    outputs, inputs = w_OI.shape
    w_PRI = w_OI.float().abs().view(parts, outputs // parts, inputs)
    w_PRI = torch.nn.functional.pad(w_PRI, (0, -inputs % BLOCK, 0, -w_PRI.shape[1] % FP8_BLOCK_ROWS))
    blocks = w_PRI.view(parts, w_PRI.shape[1] // FP8_BLOCK_ROWS, FP8_BLOCK_ROWS, -1, BLOCK)
    return blocks.amax((2, 4)).flatten(0, 1) / 448


def _exponents(scales: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(scales)  # a power of two is 0.5 * 2^e
    biased = exponent + 126
    if not bool(((mantissa == 0.5) & (biased >= 0) & (biased <= MXFP4_MAX_EXPONENT)).all()):
        raise ConfigError(f"MXFP4 scales must be powers of two from 2^-127 to 2^{MXFP4_MAX_EXPONENT - 127}")
    return biased.to(torch.uint8)


# ---------------------------------------------------------------- codes


def _codes(w_OI: torch.Tensor, scales_OI: torch.Tensor, kind: str) -> torch.Tensor:
    """Codes as int32 in the low bits; a group of zeros has scale zero and code zero."""
    ratio = torch.where(scales_OI == 0, 0.0, w_OI / scales_OI)
    if kind == "fp8":
        return ratio.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).int()
    if kind == "int8":
        return ratio.round().clamp(-127, 127).int() + ZERO_CODES[kind]
    if kind == "int4":
        return ratio.round().clamp(-8, 7).int() + ZERO_CODES[kind]
    table = torch.tensor(_FP4, device=ratio.device)
    middles = (table[1:] + table[:-1]) / 2
    magnitude = ratio.abs()
    low, high = torch.bucketize(magnitude, middles), torch.bucketize(magnitude, middles, right=True)
    nearest = torch.where(low % 2 == 0, low, high)  # ties to the even code
    return nearest.int() | torch.where(ratio.signbit(), 8, 0)


def _values(codes: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "fp8":
        return codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
    if kind in ZERO_CODES:
        return (codes - ZERO_CODES[kind]).float()
    table = torch.tensor(_FP4, device=codes.device)
    return table[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)


def _to_words(codes_RI: torch.Tensor, kind: str) -> torch.Tensor:
    """int32 [rows, words]. 4-bit: word (q, s // 2), bits 4 (2 (s % 2) + h) + 16 b. 8-bit: word (q, s), bits 8 (2 h + b)."""
    fragments = codes_RI.view(len(codes_RI), -1, 8, 2, 4, 2)  # s, h, q, b
    if kind in FOUR_BITS:
        nibbles = fragments.view(len(codes_RI), -1, 4, 2, 2, 4, 2).permute(0, 1, 5, 2, 6, 3, 4).flatten(4)
        return _join(nibbles, 4).flatten(1)
    return _join(fragments.permute(0, 1, 4, 2, 3, 5).flatten(4), 8).flatten(1)


def _from_words(words_RW: torch.Tensor, kind: str) -> torch.Tensor:
    if kind in FOUR_BITS:
        codes = _parts(words_RW, 4).view(len(words_RW), -1, 4, 4, 2, 2, 2)  # q, s // 2, b, s % 2, h
        return codes.permute(0, 1, 3, 5, 6, 2, 4).reshape(len(words_RW), -1)
    codes = _parts(words_RW, 8).view(len(words_RW), -1, 4, 8, 2, 2)  # q, s, h, b
    return codes.permute(0, 1, 3, 4, 2, 5).reshape(len(words_RW), -1)


def _join(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The last axis, lowest bits first, as one 32-bit word."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=codes.device)
    return (codes << shifts).sum(-1, dtype=torch.int32)


def _parts(words: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(0, 32, bits, device=words.device)
    return ((words[..., None].long() >> shifts) & (2**bits - 1)).int()
