"""A quantised matrix: one code per weight and the scales they are multiplied with; and codes in bits, as files hold them.

Knows numbers, not files. Codes are a byte each in memory whatever their width on disk, so one matrix at a time is all
that is ever spread out. Bit order is compressed-tensors' and gpt-oss': the first input in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["int8", "int4", "fp4", "fp8"]
Op = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# e2m1: sign, two exponent bits, one mantissa bit
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """`codes_OI` are int8 for integers, uint8 for floats (e2m1 in the low nibble, e4m3); `scales_ON` are float32.

    Scale n of a row belongs to its inputs [n * group, (n + 1) * group), the last group cut short; group 0 is the whole row.
    """

    kind: Kind
    group: int
    codes_OI: torch.Tensor
    scales_ON: torch.Tensor

    def values(self) -> torch.Tensor:
        """What the codes stand for before scaling, float32."""
        if self.kind == "fp4":
            table = torch.tensor(FP4_VALUES, device=self.codes_OI.device)
            return table.index_select(0, self.codes_OI.flatten().int()).view(self.codes_OI.shape)
        if self.kind == "fp8":
            return self.codes_OI.view(torch.float8_e4m3fn).float()
        return self.codes_OI.float()

    def dense(self) -> torch.Tensor:
        """The weights, float32 [O, I]."""
        return scale_groups(self.values(), self.scales_ON, self.group)


def scale_groups(x_OI: torch.Tensor, scales_ON: torch.Tensor, group: int, op: Op = torch.mul) -> torch.Tensor:
    """`x` times (or another `op`) the scale of each group."""
    if not group:
        return op(x_OI, scales_ON)
    width = x_OI.shape[1]
    if width % group:
        return op(x_OI, scales_ON.repeat_interleave(group, 1)[:, :width])
    return op(x_OI.unflatten(1, (-1, group)), scales_ON[..., None]).flatten(1)


def num_groups(inputs: int, group: int) -> int:
    return -(-inputs // group) if group else 1


# ---------------------------------------------------------------- bits


def to_int32(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes of 4 or 8 bits as int32 words, offset to unsigned; a row is padded to whole words."""
    offset = (codes_OI.to(torch.int16) + (1 << bits - 1)).to(torch.uint8)
    padded = torch.nn.functional.pad(offset, (0, -codes_OI.shape[1] % (32 // bits)))
    return (padded if bits == 8 else to_nibbles(padded)).view(torch.int32)


def from_int32(words_OW: torch.Tensor, bits: int, inputs: int) -> torch.Tensor:
    """The reverse: int8 [O, inputs]."""
    raw = words_OW.contiguous().view(torch.uint8)
    offset = raw if bits == 8 else from_nibbles(raw)
    return (offset[:, :inputs].to(torch.int16) - (1 << bits - 1)).to(torch.int8)


def to_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes below 16, two to a byte along the last axis (of even length), the first in the low half."""
    pairs = codes.unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def from_nibbles(raw: torch.Tensor) -> torch.Tensor:
    return torch.stack((raw & 15, raw >> 4), -1).flatten(-2)


def e8m0_bytes(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two as biased exponents."""
    return (torch.frexp(scales)[1] + 126).to(torch.uint8)


def e8m0_values(raw: torch.Tensor) -> torch.Tensor:
    """By their bits, so that a power is exact on every device: the exponent of float32, or its subnormal 2^-127."""
    return torch.where(raw == 0, 1 << 22, raw.int() << 23).to(torch.int32).view(torch.float32)
