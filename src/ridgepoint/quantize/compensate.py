"""Codes that minimise the error of a matrix's outputs on given inputs, not of its weights: error compensation (GPTQ).

With H the second moment of the inputs, the error of the outputs is tr(dW H dW'). Columns are rounded one after another,
the most active first, and what each loses is made up for by those still to come (Frantar et al., 2022). Scales are fixed
before, each by a small search for what its group loses under H's diagonal, so groups stay those of the format and every
format with codes is served by one routine. Scaling of input channels (AWQ) would have to be folded into norms and
projections that routers and shared experts read as well; this changes nothing but codes.
"""

from __future__ import annotations

import torch

from ridgepoint.models import codes as coded
from ridgepoint.models.codes import Codes
from ridgepoint.quantize.formats import Format
from ridgepoint.quantize.rounding import in_scales, largest_scales, nearest_codes

DAMPING_FRAC = 0.01  # of the mean of H's diagonal, added to it: inputs seen little must not be trusted much
COLUMNS = 128  # rounded before the rest of the matrix hears of it
# What the scale by the largest magnitude is multiplied with. Four-bit floats keep their powers of two.
_SHRINK = {
    "int4": [1.0 - 0.025 * step for step in range(13)],
    "int8": [1.0 - 0.01 * step for step in range(6)],
    "fp4": [1.0, 0.5, 2.0],
    "fp8": [1.0],
}


def search_scales(w_OI: torch.Tensor, importance_I: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Scales [O, N] by which each group loses least, its squared errors weighted by the importance of their inputs."""
    largest_ON = largest_scales(w_OI, fmt)
    if fmt.kind == "fp8":
        return largest_ON
    best_ON, least_ON = largest_ON, torch.full_like(largest_ON, torch.inf)
    for factor in _SHRINK[fmt.kind]:
        scales_ON = largest_ON * factor if fmt.kind == "fp4" else (largest_ON * factor).bfloat16().float()
        codes_OI = nearest_codes(in_scales(w_OI, scales_ON, fmt.group), fmt.kind)
        dense_OI = Codes(kind=fmt.kind, group=fmt.group, codes_OI=codes_OI, scales_ON=scales_ON).dense()
        loss_ON = _group_sums((dense_OI - w_OI).square() * importance_I, fmt.group)
        better = loss_ON < least_ON
        best_ON, least_ON = torch.where(better, scales_ON, best_ON), torch.where(better, loss_ON, least_ON)
    return best_ON


def compensate(w_OI: torch.Tensor, moment_II: torch.Tensor, fmt: Format) -> Codes:
    """Codes of `w` for inputs whose second moment is `moment` (zero: plain rounding with searched scales)."""
    importance_I = moment_II.diagonal()
    if not bool(importance_I.any()):
        importance_I = torch.ones_like(importance_I)
        moment_II = torch.diag(importance_I)
    scales_ON = search_scales(w_OI, importance_I, fmt)
    order_I = importance_I.argsort(descending=True, stable=True)
    factor_II = _inverse_factor(moment_II[order_I][:, order_I])
    wide_OI = coded.scale_groups(torch.ones_like(w_OI), scales_ON, fmt.group)[:, order_I]
    safe_OI = torch.where(wide_OI == 0, 1.0, wide_OI)
    w, codes = w_OI[:, order_I].clone(), torch.empty(w_OI.shape, dtype=torch.int8 if "int" in fmt.kind else torch.uint8)
    for first in range(0, w.shape[1], COLUMNS):
        last = min(first + COLUMNS, w.shape[1])
        errors_OB = torch.empty(w.shape[0], last - first)
        for j in range(first, last):
            column = nearest_codes(w[:, j : j + 1] / safe_OI[:, j : j + 1], fmt.kind)
            codes[:, j : j + 1] = column
            kept = Codes(kind=fmt.kind, group=0, codes_OI=column, scales_ON=wide_OI[:, j : j + 1]).dense()[:, 0]
            error_O = (w[:, j] - kept) / factor_II[j, j]
            w[:, j:last].addr_(error_O, factor_II[j, j:last], alpha=-1)
            errors_OB[:, j - first] = error_O
        w[:, last:].addmm_(errors_OB, factor_II[first:last, last:], alpha=-1)
    restored = torch.empty_like(codes)
    restored[:, order_I] = codes
    return Codes(kind=fmt.kind, group=fmt.group, codes_OI=restored, scales_ON=scales_ON)


def output_loss(w_OI: torch.Tensor, codes: Codes, moment_II: torch.Tensor) -> float:
    """tr(dW H dW') over tr(W H W'): the squared error of the outputs as a share of the outputs' squares."""
    delta_OI = codes.dense() - w_OI
    return float(((delta_OI @ moment_II) * delta_OI).sum() / ((w_OI @ moment_II) * w_OI).sum().clamp_min(1e-30))


def _inverse_factor(moment_II: torch.Tensor) -> torch.Tensor:
    """Upper U with U'U = (H + damping)^-1: row j says how the error of input j spreads to later ones."""
    damped = moment_II + torch.eye(len(moment_II)) * (DAMPING_FRAC * moment_II.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _group_sums(x_OI: torch.Tensor, group: int) -> torch.Tensor:
    if not group:
        return x_OI.sum(1, keepdim=True)
    return torch.nn.functional.pad(x_OI, (0, -x_OI.shape[1] % group)).unflatten(1, (-1, group)).sum(-1)
