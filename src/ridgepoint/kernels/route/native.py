"""Routing by the native kernels."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import RouterSpec
from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import address, call, empty, rows

SCORES = {"softmax": 0, "sigmoid": 1, "softmax_topk": 2, "sparsemixer": 3}


def route(
    logits_TE: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_TE = rows(logits_TE)
    weights_TK = empty(logits_TE.shape[0], top_k, dtype=torch.float32)
    ids_TK = empty(logits_TE.shape[0], top_k, dtype=torch.int64)
    call(
        native.RouteOp, logits_TE.shape[0], logits=address(logits_TE), correction=address(correction_E),
        weights=address(weights_TK), expert_ids=address(ids_TK), num_experts=logits_TE.shape[1], top_k=top_k,
        num_groups=router.num_groups, topk_groups=router.topk_groups, scores=SCORES[router.scores],
        normalise=router.normalise, group_top2=router.group_score == "top2_sum", scale=router.scale,
        jitter=router.jitter_eps or 0.0,
    )  # fmt: skip
    return weights_TK, ids_TK
