"""Matrix products with a weight. The activation's type decides; a wider weight is cast to it.

The weight is a torch tensor or a packed weight. The path that packed it is the path that reads it.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.kernels.dispatch import implementation


def linear(x_TI: torch.Tensor, w_OI: torch.Tensor | Any, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ w.T + bias`."""
    out: torch.Tensor = implementation("linear", x_TI).linear(x_TI, w_OI, bias_O)
    return out


def linear_heads(x_THI: torch.Tensor, w_HOI: torch.Tensor | Any) -> torch.Tensor:
    """One matrix per head: `out[t, h] = w[h] @ x[t, h]` (MLA moves into and out of its latent space so)."""
    out: torch.Tensor = implementation("linear", x_THI).linear_heads(x_THI, w_HOI)
    return out


def linear_f32(x_TI: torch.Tensor, w_OI: torch.Tensor | Any, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`linear` with a float32 result. Routers (float32 weights: the choice of experts is decided in full precision
    even where the model computes in 16 bits) and vocabulary heads use it."""
    out: torch.Tensor = implementation("linear", x_TI).linear_f32(x_TI, w_OI, bias_O)
    return out


def linear_f32_into(
    out_TO: torch.Tensor, x_TI: torch.Tensor, w_OI: torch.Tensor | Any, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """`linear_f32` written to `out_TO`, which is returned: logits of many rows are too large to be copied for nothing."""
    path = implementation("linear", x_TI)
    if hasattr(path, "linear_f32_into"):
        path.linear_f32_into(out_TO, x_TI, w_OI, bias_O)
        return out_TO
    return out_TO.copy_(path.linear_f32(x_TI, w_OI, bias_O))
