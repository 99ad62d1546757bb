"""What the cost model must know of an engine to predict its steps: the chip, and the formats its weights really have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.cost.following import FollowingTimer
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.timer import CostTimer
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.kv_dtype import kv_dtype_of
from ridgepoint.engine.options import EngineOptions
from ridgepoint.kernels.packed import A8
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.ffn import Experts, Router
from ridgepoint.nn.linear import Linear

_OF_DTYPE = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8", torch.float8_e4m3fn: "fp8",
}  # fmt: skip
_OF_PACKED = {
    "f32": "fp32", "bf16": "bf16", "bf16-12": "bf16_12", "int8": "int8", "int8-32": "int8_g32", "int8-128": "int8_g128", "int4-32": "int4_g32",
    "int4-128": "int4", "mxfp4": "mxfp4", "fp8": "fp8_block",
}  # fmt: skip


def choose_timer(options: EngineOptions, decoder: Decoder, announce: Callable[[str], None]) -> FollowingTimer | None:
    """What predicts the seconds of a step: the cost model, for the hardware that was named, following what steps take."""
    if options.hardware is None:
        return None
    chip = accelerator(options.hardware)
    precision = precision_of(decoder, kv_dtype_of(options, decoder))
    constants = calibration_for(chip, options.calibration)
    announce(f"predicted seconds: {chip.name}, {_told(precision)}, constants {constants.name} ({constants.provenance})")
    return FollowingTimer(CostTimer(decoder.spec, chip, precision, constants))


def _told(precision: Precision) -> str:
    """Each format once, with the roles it has."""
    roles: dict[str, list[str]] = {}
    for role in ("experts", "weights", "head"):
        roles.setdefault(getattr(precision, role), []).append("other weights" if role == "weights" else role)
    return ", ".join(f"{' and '.join(names)} in {fmt}" for fmt, names in roles.items())


def precision_of(decoder: Decoder, kv_dtype: torch.dtype | None = None) -> Precision:
    """The formats of a loaded decoder by role, and of its KV (None: as its activations). Roles with several formats count as the widest of them."""
    activations = _OF_DTYPE[decoder.compute_dtype]
    modules = list(decoder.modules())
    experts = [module.w_gate_up_E2FD for module in modules if isinstance(module, Experts)]
    apart = (decoder.head, *(module for module in modules if isinstance(module, Router)))
    dense = [module.weight for module in modules if isinstance(module, Linear) and module not in apart]
    head = decoder.head.weight if decoder.head is not None else decoder.packed_head or decoder.embed.weight
    formats = [getattr(weight, "format", "") for weight in (*experts, *dense, head)]
    rounded = {"fp8" if fmt.startswith("fp8") else "int8" for fmt in formats if fmt.endswith(A8)}
    return Precision(
        weights=_widest(dense, activations), experts=_widest(experts, activations), head=_format(head),
        kv=_OF_DTYPE[kv_dtype or decoder.compute_dtype], activations=min(rounded, default=activations),
        attention=activations, dispatch=activations, combine=activations,
    )  # fmt: skip


def _format(weight: Any) -> str:
    """Of a tensor or of packed weights, whichever kernels they were packed for."""
    return _OF_DTYPE[weight.dtype] if isinstance(weight, torch.Tensor) else _OF_PACKED[weight.format.removesuffix(A8)]


def _widest(weights: list[Any], otherwise: str) -> str:
    return max(map(_format, weights), key=bytes_per_value, default=otherwise)
