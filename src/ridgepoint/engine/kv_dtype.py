"""Which type KV is kept in. Decides from options and decoder; a type that cannot be had is refused with the reason."""

from __future__ import annotations

import torch

from ridgepoint.engine.options import EngineOptions
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.paged_attention import native as native_attention
from ridgepoint.models.decoder import Decoder


def kv_dtype_of(options: EngineOptions, decoder: Decoder) -> torch.dtype:
    """What KV is kept in: the activations' type, or one that is smaller where the native kernels read it."""
    own, device = decoder.compute_dtype, decoder.embed.weight.device
    dtype: torch.dtype = own if options.kv_dtype is None else getattr(torch, options.kv_dtype)
    if dtype == own:
        return dtype
    asked = f"kv_dtype {options.kv_dtype} cannot be had"
    if dtype.itemsize >= own.itemsize or own == torch.float16:
        raise ConfigError(f"{asked} for activations of {own}", hint="leave it open")
    if not native_attention.fits(options.block_tokens, 2, dtype, device):
        lost = native.load_error() or f"they take no {options.block_tokens}-token blocks on {device.type}"
        raise ConfigError(
            f"{asked} without the native kernels: {lost}",
            hint=f"block_tokens a multiple of {native_attention.SUB_TOKENS}, on the CPU",
        )
    return dtype
