"""A matrix to codes: scales by the largest magnitude, codes to nearest; and codes to the tensors a file holds.

Scales are rounded to the precision they are stored in before any code is chosen, so codes are nearest to what will be
read back.
"""

from __future__ import annotations

import torch

from ridgepoint.kernels.packed import choose_scales
from ridgepoint.models import codes as coded
from ridgepoint.models.codes import Codes, Kind, num_groups
from ridgepoint.quantize.formats import Format

FP8_LARGEST = 448.0
# Halfway between neighbouring e2m1 magnitudes. A tie goes to the even code, so the odd boundaries lie a hair lower.
_FP4_BOUNDS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_FP4_BOUNDS[1::2] = torch.nextafter(_FP4_BOUNDS[1::2], torch.tensor(0.0))


def largest_scales(w_OI: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Scales [O, N], one per group of each row, by which every weight of the group is in range."""
    if fmt.kind == "fp8":
        return _block_scales(w_OI, fmt)
    if fmt.kind == "fp4":
        return choose_scales(w_OI, "mxfp4")
    bits = "int8" if fmt.kind == "int8" else "int4"
    return choose_scales(w_OI, f"{bits}-{fmt.group}" if fmt.group else bits).bfloat16().float().view(len(w_OI), -1)


def _block_scales(w_OI: torch.Tensor, fmt: Format) -> torch.Tensor:
    o, i = w_OI.shape
    rows, columns = num_groups(o, fmt.group_rows), num_groups(i, fmt.group)
    padded = torch.nn.functional.pad(w_OI.abs(), (0, columns * fmt.group - i, 0, rows * fmt.group_rows - o))
    largest = padded.view(rows, fmt.group_rows, columns, fmt.group).amax((1, 3))
    return (largest / FP8_LARGEST).repeat_interleave(fmt.group_rows, 0)[:o]


def nearest_codes(scaled: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Codes nearest to weights already divided by their scales; out of range is the outermost code."""
    if kind == "int8":
        return scaled.round().clamp(-127, 127).to(torch.int8)
    if kind == "int4":
        return scaled.round().clamp(-8, 7).to(torch.int8)
    if kind == "fp8":
        return scaled.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)
    return (torch.bucketize(scaled.abs(), _FP4_BOUNDS) | (scaled.signbit().long() << 3)).to(torch.uint8)


def in_scales(w_OI: torch.Tensor, scales_ON: torch.Tensor, group: int) -> torch.Tensor:
    """Weights divided by their scales; a group of zeros, whose scale is zero, stays zero."""
    return coded.scale_groups(w_OI, torch.where(scales_ON == 0, 1.0, scales_ON), group, torch.div)


def round_to_nearest(w_OI: torch.Tensor, fmt: Format) -> Codes:
    """Float32 [O, I] to codes."""
    scales_ON = largest_scales(w_OI, fmt)
    codes_OI = nearest_codes(in_scales(w_OI, scales_ON, fmt.group), fmt.kind)
    return Codes(kind=fmt.kind, group=fmt.group, codes_OI=codes_OI, scales_ON=scales_ON)


def stored_tensors(name: str, matrices: list[Codes], fmt: Format, *, stacked: bool) -> dict[str, torch.Tensor]:
    """The tensors under which the matrices of the weight `name` are written."""
    parts = [_stored_matrix(codes, fmt) for codes in matrices]
    joined = {key: torch.stack([part[key] for part in parts]) if stacked else parts[0][key] for key in parts[0]}
    if fmt.packing == "int32":
        shape = [*([len(matrices)] if stacked else []), *matrices[0].codes_OI.shape]
        joined["_shape"] = torch.tensor(shape, dtype=torch.int64)
    return {f"{name}{suffix}": tensor for suffix, tensor in joined.items()}


def _stored_matrix(codes: Codes, fmt: Format) -> dict[str, torch.Tensor]:
    """By the suffix of the weight's name."""
    if fmt.packing == "bytes":
        return {"": codes.codes_OI, "_scale": codes.scales_ON.bfloat16()}
    if fmt.packing == "int32":
        return {
            "_packed": coded.to_int32(codes.codes_OI, 4 if codes.kind == "int4" else 8),
            "_scale": codes.scales_ON.bfloat16(),
        }
    if fmt.packing == "fp8 blocks":
        return {
            "": codes.codes_OI.view(torch.float8_e4m3fn),
            "_scale_inv": codes.scales_ON[:: fmt.group_rows].contiguous(),
        }
    even = torch.nn.functional.pad(codes.codes_OI, (0, codes.codes_OI.shape[1] % 2))
    pairs, scales = coded.to_nibbles(even), coded.e8m0_bytes(codes.scales_ON)
    if fmt.packing == "gpt-oss blocks":
        return {"_blocks": pairs.unflatten(1, (scales.shape[1], -1)), "_scales": scales}
    return {"_packed": pairs, "_scale": scales}
