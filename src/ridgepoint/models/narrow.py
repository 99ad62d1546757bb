"""Router weights in the type of the activations where that loses nothing: published checkpoints store routers in bf16.

A router's product is then one launch on the matrix units instead of a cast and a float32 product; products of bf16 numbers
are exact in float32, so only the order of sums differs.
"""

from __future__ import annotations

import torch
from torch import nn

from ridgepoint.models.decoder import Decoder


def narrow_routers(decoder: Decoder, *, assume_exact: bool = False) -> int:
    """Keep each router whose weights are bf16 numbers in bf16, for a decoder that computes in it; returns how many.
    `assume_exact` is for weights without numbers."""
    narrowed = 0
    for _, moe in decoder.moe_layers():
        weight = moe.router.weight
        if decoder.compute_dtype != torch.bfloat16 or weight.dtype != torch.float32:
            continue
        short = weight.detach().bfloat16()
        if assume_exact or torch.equal(short.float(), weight):
            moe.router.weight = nn.Parameter(short, requires_grad=False)
            narrowed += 1
    return narrowed
