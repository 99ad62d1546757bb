"""Swaps a decoder's weights for packed ones, so that its ops run by the native kernels. Decides formats by role.

Routers stay float32 (the choice of experts is made in full precision); everything else takes `fmt`. Each weight is freed as
its packed form appears, so the peak is the model plus its largest weight. Biases and sinks become float32 once.
"""

from __future__ import annotations

import torch
from torch import nn

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import pack
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.attention import GqaAttention, MlaAttention
from ridgepoint.nn.ffn import Experts, Router
from ridgepoint.nn.linear import Linear, replace_weight


@torch.no_grad()
def pack_decoder(decoder: Decoder, fmt: str | None = None) -> Decoder:
    """Pack every matrix of `decoder` in place (default: in the type it has) and return it. Inference only."""
    if decoder.dtype not in (torch.bfloat16, torch.float32) or decoder.compute_dtype != decoder.dtype:
        raise ConfigError(
            f"cannot pack a decoder of {decoder.dtype} computing in {decoder.compute_dtype}; allowed: bf16, f32"
        )
    if decoder.embed.weight.device.type != "cpu":
        raise ConfigError(f"cannot pack a decoder on {decoder.embed.weight.device}; allowed: cpu")
    if decoder.dtype == torch.float32 and fmt not in (None, "f32"):
        raise ConfigError(f"a float32 decoder packs as f32, not {fmt!r}", hint="load it in bfloat16")
    native.library()
    if decoder.head is None:
        decoder.packed_head = pack(decoder.embed.weight, fmt)
    for module in decoder.modules():
        if isinstance(module, Linear):
            _swap(module, "weight", fmt)
        elif isinstance(module, Experts):
            _swap(module, "w_gate_up_E2FD", fmt, glu=True)
            _swap(module, "w_down_EDF", fmt)
            _widen(module, "bias_gate_up_E2F")
            _widen(module, "bias_down_ED")
        elif isinstance(module, Router):
            _swap(module, "weight", "f32")
        elif isinstance(
            module, MlaAttention
        ):  # the matrix that moves a query into the latent space, and the one out of it
            replace_weight(module, "w_uk_HNC", pack(module.w_uk_HNC.transpose(1, 2), fmt))
            _swap(module, "w_uv_HVC", fmt)
        elif isinstance(module, GqaAttention):
            _widen(module, "sinks_H")
        if isinstance(module, Linear | Router):
            _widen(module, "bias")
    return decoder


def _swap(module: nn.Module, name: str, fmt: str | None, *, glu: bool = False) -> None:
    replace_weight(module, name, pack(getattr(module, name), fmt, glu=glu))


def _widen(module: nn.Module, name: str) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        module._parameters[name] = nn.Parameter(parameter.float().contiguous(), requires_grad=False)
