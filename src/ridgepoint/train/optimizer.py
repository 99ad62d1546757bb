"""The optimiser's parts: AdamW over float32 masters, the warmup-cosine schedule, and the routers' balancing bias.

Knows nothing of the forward pass. Invariant: what is decayed is decided by the shape of a parameter (matrices are, norm
scales are not), never by a list that can go stale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ridgepoint.train.recipe import OptimizerTable


def make_adamw(masters: Sequence[Tensor], table: OptimizerTable) -> torch.optim.AdamW:
    decayed = [tensor for tensor in masters if tensor.ndim >= 2]
    plain = [tensor for tensor in masters if tensor.ndim < 2]
    groups = [{"params": decayed, "weight_decay": table.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=table.lr, betas=(table.beta1, table.beta2), eps=table.eps, fused=True)


def learning_rate(table: OptimizerTable, step: int, steps: int) -> float:
    """Linear to `lr` over the warmup, then half a cosine down to `lr * final_lr_frac` at the last step."""
    if step < table.warmup_steps:
        return table.lr * (step + 1) / table.warmup_steps
    done = (step - table.warmup_steps) / max(1, steps - 1 - table.warmup_steps)
    return table.lr * (table.final_lr_frac + (1 - table.final_lr_frac) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def clip_norm(grads: list[Tensor], limit: float) -> float:
    """Scale `grads` in place so that their joint norm is at most `limit`; returns the norm before."""
    norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm().item()
    if norm > limit:
        for grad in grads:
            grad.mul_(limit / norm)
    return norm


def balance(bias_E: Tensor, load_E: Tensor, rate: float) -> float:
    """Auxiliary-loss-free balancing (DeepSeek-V3, arXiv:2412.19437, section 2.1.2): an expert above the mean load
    becomes less likely to be chosen by `rate`, one below it more likely. Returns max load / mean load."""
    mean = load_E.float().mean()
    bias_E += rate * torch.sign(mean - load_E.float())
    return float(load_E.max() / mean)
