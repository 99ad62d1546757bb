"""Swaps a decoder's weights for packed ones, so that its ops run by the native or the Triton kernels. Decides formats by role.

Routers stay float32 (the choice of experts is made in full precision); everything else takes `fmt`. Each weight is freed as
its packed form appears, so the peak is the model plus its largest weight. On a CPU biases and sinks become float32 once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.device_weight import pack_for_device
from ridgepoint.kernels.packed import pack
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.attention import GqaAttention, MlaAttention
from ridgepoint.nn.ffn import Experts, Router
from ridgepoint.nn.linear import Linear, replace_weight

# A router is multiplied in float32; a `glu` matrix has gate rows, then up rows.
Role = Literal["plain", "glu", "router"]


@torch.no_grad()
def pack_decoder(decoder: Decoder, fmt: str | None = None) -> Decoder:
    """Pack every matrix of `decoder` in place (default: in the type it has) and return it. Inference only."""
    if decoder.dtype not in (torch.bfloat16, torch.float32) or decoder.compute_dtype != decoder.dtype:
        raise ConfigError(
            f"cannot pack a decoder of {decoder.dtype} computing in {decoder.compute_dtype}; allowed: bf16, f32"
        )
    device = decoder.embed.weight.device.type
    if device != "cpu":
        raise ConfigError(f"cannot pack a decoder on {device}; allowed: cpu")
    if decoder.dtype == torch.float32 and fmt not in (None, "f32"):
        raise ConfigError(f"a float32 decoder packs as f32, not {fmt!r}", hint="load it in bfloat16")
    native.library()
    if decoder.head is None:
        decoder.packed_head = pack(decoder.embed.weight, fmt)
    for module, name, role in matrices_of(decoder):
        replace_weight(module, name, pack(getattr(module, name), "f32" if role == "router" else fmt, glu=role == "glu"))
    widen_vectors(decoder)
    pack_latents(decoder, fmt)
    return decoder


@torch.no_grad()
def pack_by_role(decoder: Decoder, fmt: str) -> Decoder:
    """Every matrix but routers' as a `DeviceWeight`, wherever the decoder is (Triton's interpreter reads them on a CPU)."""
    if decoder.head is None:
        decoder.packed_head = pack_for_device(decoder.embed.weight, fmt)
    for module, name, role in matrices_of(decoder):
        if role != "router":
            replace_weight(module, name, pack_for_device(getattr(module, name), fmt, glu=role == "glu"))
    return decoder


def matrices_of(decoder: Decoder) -> Iterator[tuple[nn.Module, str, Role]]:
    """Every matrix that is packed one to one: its module, its name there, and its role."""
    for module in decoder.modules():
        if isinstance(module, Linear):
            yield module, "weight", "plain"
        elif isinstance(module, Experts):
            yield module, "w_gate_up_E2FD", "glu"
            yield module, "w_down_EDF", "plain"
        elif isinstance(module, Router):
            yield module, "weight", "router"


def pack_latents(decoder: Decoder, fmt: str | None) -> None:
    """Of latent attention: the matrix that moves a query into the latent space (transposed), and the one out of it."""
    fmt = None if fmt == "bf16-12" else fmt  # to the bit, whatever their exponents
    for module in decoder.modules():
        if isinstance(module, MlaAttention):
            replace_weight(module, "w_uk_HNC", pack(module.w_uk_HNC.transpose(1, 2), fmt))
            replace_weight(module, "w_uv_HVC", pack(module.w_uv_HVC, fmt))


def widen_vectors(decoder: Decoder) -> None:
    """Biases and sinks become float32, the type in which the native kernels add them."""
    for module in decoder.modules():
        if isinstance(module, Experts):
            _widen(module, "bias_gate_up_E2F")
            _widen(module, "bias_down_ED")
        elif isinstance(module, GqaAttention):
            _widen(module, "sinks_H")
        elif isinstance(module, Linear | Router):
            _widen(module, "bias")


def _widen(module: nn.Module, name: str) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        module._parameters[name] = nn.Parameter(parameter.float().contiguous(), requires_grad=False)
