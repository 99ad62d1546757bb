"""The decoders of a run: float32 masters, the copy that the forward pass reads, and one view of it for each worker.

Decides initial values and what computes in which type. Knows nothing of batches or optimisers. Invariant: one seed gives
one set of masters, whatever they are used for.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.models.decoder import ENDS_BRANCH, Decoder
from ridgepoint.nn.norm import Norm


@torch.no_grad()
def initial_masters(spec: ModelSpec, seed: int) -> Decoder:
    """Matrices draw from N(0, 1/fan_in); those that write to the residual stream are divided by sqrt(2 L) more, so that the
    stream's variance does not grow with depth, and an untied head by 2."""
    decoder = Decoder(spec, torch.float32)
    draw = torch.Generator().manual_seed(seed)
    depth = 1 / math.sqrt(2 * len(spec.layers))
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
            continue
        scale = depth if name.endswith(ENDS_BRANCH) else 0.5 if name == "head.weight" else 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * (scale / math.sqrt(parameter.shape[-1])))
    return decoder


def correction_biases(decoder: Decoder) -> dict[str, Tensor]:
    """Moved by the load, never by a gradient."""
    return {name: buffer for name, buffer in decoder.named_buffers() if name.endswith("router.correction_E")}


def compute_copy(masters: Decoder, dtype: torch.dtype) -> Decoder:
    """Norm scales and routers in float32, everything else in `dtype`; yet to be filled by `refresh`. Correction biases are
    the masters' own."""
    decoder = Decoder(masters.spec, dtype)
    for module in decoder.modules():
        if isinstance(module, Norm):
            module.float()
    for (_, mine), (_, theirs) in zip(decoder.moe_layers(), masters.moe_layers(), strict=True):
        mine.router.correction_E = theirs.router.correction_E
    return decoder


@torch.no_grad()
def refresh(decoder: Decoder, masters: Decoder) -> None:
    """Copy the masters into a `compute_copy` of theirs."""
    for parameter, master in zip(decoder.parameters(), masters.parameters(), strict=True):
        parameter.copy_(master)


def worker_view(decoder: Decoder) -> Decoder:
    """The same weights with load counters of its own, in training mode: threads must not count into one."""
    shared = [*decoder.parameters(), *correction_biases(decoder).values()]
    return copy.deepcopy(decoder, {id(tensor): tensor for tensor in shared}).train()
