"""Stored numbers back to plain ones: fp8 blocks, MXFP4, int8 channels. Each takes the tensors of one weight.

The reverse of what their publishers did, in float32, one matrix at a time; memory for one weight is all it needs.
"""

from __future__ import annotations

import torch

# e2m1: sign, two exponent bits, one mantissa bit
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32


def fp8_blocks(weight_OI: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`weight * scale` with one scale per `rows x columns` block, the last ones cut short."""
    o, i = weight_OI.shape
    wide = scale.float().repeat_interleave(rows, 0)[:o].repeat_interleave(columns, 1)[:, :i]
    return weight_OI.float() * wide


def int8_channels(weight_OI: torch.Tensor, scale_ON: torch.Tensor) -> torch.Tensor:
    """`weight * scale` with N scales along each row (N = 1: one per channel)."""
    o, i = weight_OI.shape
    grouped = weight_OI.float().view(o, scale_ON.shape[1], i // scale_ON.shape[1])
    return (grouped * scale_ON.float()[..., None]).view(o, i)


def mxfp4(blocks_ONB: torch.Tensor, scales_ON: torch.Tensor) -> torch.Tensor:
    """Packed nibbles `[O, N, 16]` (low nibble first) times `2^(scale - 127)`: float32 `[O, 32 N]`."""
    pairs = torch.tensor([[FP4_VALUES[byte & 15], FP4_VALUES[byte >> 4]] for byte in range(256)])
    o, n, half = blocks_ONB.shape
    values_ONB = pairs.index_select(0, blocks_ONB.flatten().int()).view(o, n, 2 * half)
    return torch.ldexp(values_ONB, scales_ON.int()[..., None] - 127).flatten(1)
