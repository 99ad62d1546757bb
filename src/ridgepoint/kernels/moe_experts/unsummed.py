"""Experts' results before each token's rows are summed, for whoever sums them on the way: the addition to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class UnsummedRows:
    """Stands for `delta[t] = sum_k weights_TK[t, k] * y_MD[pair_row[t K + k]]`, added in the order of k in float32 and rounded
    to the type of `y_MD`. Without a `pair_row` rows lie in the order of the pairs."""

    y_MD: torch.Tensor
    weights_TK: torch.Tensor
    pair_row: torch.Tensor | None


Delta = torch.Tensor | UnsummedRows  # a branch that is not yet added
