# mypy: disallow-untyped-defs=False
"""Words of a `DeviceWeight` to bfloat16, in registers: a tile of 128 inputs at a time, in the plain order of inputs.

The order of the codes (see `device_weight`) makes the reordering here one of names: every lane already holds what its
matrix instruction wants, so nothing goes through shared memory. That holds only while words are widened by `join` with
constant shifts; a broadcast over a range of shifts makes the compiler exchange the results instead of the words.

Integers become floats by their bits (a float's exponent put above the code), because converting costs four times as much.
Four-bit codes are widened two at a time by the assembly below; `_plain` spells out the same values for the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import INTERPRETED

_BLOCK: tl.constexpr = tl.constexpr(128)


def _shifted(to: str, by: int) -> str:
    return f"shl.b32 {to}, $8, {by};" if by >= 0 else f"shr.u32 {to}, $8, {-by};"


def _int4(pair: int) -> list[str]:
    """128 + code is a bf16 whose low mantissa bits are the code; 136 = 128 + 8 is taken away exactly."""
    widened = "lop3.b32 v, v, 0x000F000F, 0x43004300, 0xEA;"
    return [_shifted("v", -4 * pair), widened, "mov.b32 t, 0x43084308;", "sub.rn.bf16x2 v, v, t;"]


def _mxfp4(pair: int) -> list[str]:
    """Sign to bit 15, exponent and mantissa to bits 8 to 6: the value times 2^-126 (a subnormal for one half)."""
    magnitude = [_shifted("t", 6 - 4 * pair), "and.b32 t, t, 0x01C001C0;"]
    return [*magnitude, _shifted("v", 12 - 4 * pair), "lop3.b32 v, v, 0x80008000, t, 0xEA;"]


def _widened(pair_of: Callable[[int], list[str]]) -> str:
    """PTX that turns word $8 into eight bf16, times $9. Pair p is the nibbles p and p + 4, one in each half of a register."""
    lines = ["{ .reg .b32 v, t, s;", "mov.b32 s, {$9, $9};"]
    for pair in range(4):
        lines += [*pair_of(pair), "mul.rn.bf16x2 v, v, s;", f"mov.b32 {{${2 * pair}, ${2 * pair + 1}}}, v;"]
    return "\n".join([*lines, "}"])


_OUTPUTS: tl.constexpr = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r,h")
_INT4: tl.constexpr = tl.constexpr(_widened(_int4))
_MXFP4: tl.constexpr = tl.constexpr(_widened(_mxfp4))


@triton.constexpr_function
def words_per_block(kind):
    """32-bit words that hold 128 inputs."""
    return 16 if kind in ("int4", "mxfp4") else 32


@triton.jit
def dequantise(words, scales, KIND: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """bf16 [rows, 128]. `scales` is [rows, GROUPS]; with GROUPS 0 (8-bit codes only) one number for all."""
    if KIND == "int4" or KIND == "mxfp4":
        if KIND == "mxfp4":  # 2^(s - 127) 2^126, exact in bf16
            scales = ((scales.to(tl.int16) + 126) << 7).to(tl.bfloat16, bitcast=True)
        return _four_bits(words, scales, KIND, ROWS, GROUPS)
    else:
        values = _eight_bits(words, KIND, ROWS)
        if GROUPS > 0:
            values = (values.reshape(ROWS, GROUPS, _BLOCK // GROUPS) * scales[:, :, None]).reshape(ROWS, _BLOCK)
        else:
            values *= scales
        return values.to(tl.bfloat16)


@triton.jit
def _eight_bits(words, KIND: tl.constexpr, ROWS: tl.constexpr):
    """[rows, 32] words (q, s) of bytes (h, b) to float32 [rows, 128]."""
    codes = tl.join(tl.join(words & 255, (words >> 16) & 255), tl.join((words >> 8) & 255, (words >> 24) & 255))
    codes = codes.reshape(ROWS, 4, 8, 2, 2).permute(0, 2, 3, 1, 4).reshape(ROWS, _BLOCK)
    if KIND == "fp8":
        return codes.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        return (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0  # 2^23 + 128


@triton.jit
def _four_bits(words, scales, KIND: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """[rows, 16] words (q, s // 2) of nibbles (b, s % 2, h) to bf16 [rows, 128]."""
    factor = tl.broadcast_to(scales[:, None, :, None], (ROWS, 4, GROUPS, 4 // GROUPS)).reshape(ROWS, 16)
    if INTERPRETED:
        v0 = _plain(words, factor, KIND)
        v1 = _plain(words >> 16, factor, KIND)
        v2 = _plain(words >> 4, factor, KIND)
        v3 = _plain(words >> 20, factor, KIND)
        v4 = _plain(words >> 8, factor, KIND)
        v5 = _plain(words >> 24, factor, KIND)
        v6 = _plain(words >> 12, factor, KIND)
        v7 = _plain(words >> 28, factor, KIND)
    else:
        assembly: tl.constexpr = _INT4 if KIND == "int4" else _MXFP4
        v0, v1, v2, v3, v4, v5, v6, v7 = tl.inline_asm_elementwise(
            assembly, _OUTPUTS, [words, factor], (tl.bfloat16,) * 8, is_pure=True, pack=1
        )
    low = tl.join(tl.join(v0, v4), tl.join(v2, v6))  # s % 2, h
    high = tl.join(tl.join(v1, v5), tl.join(v3, v7))
    values = tl.join(low, high).reshape(ROWS, 4, 4, 2, 2, 2)
    return values.permute(0, 2, 3, 4, 1, 5).reshape(ROWS, _BLOCK)


@triton.jit
def _plain(words, factor, KIND: tl.constexpr):
    """The lowest nibble of each word, scaled, rounded once."""
    codes = words & 15
    if KIND == "int4":
        values = (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0  # 2^23 + 8
    else:
        values = (((codes & 8) << 28) | ((codes & 7) << 22)).to(tl.float32, bitcast=True)
    return (values * factor.to(tl.float32)).to(tl.bfloat16)
