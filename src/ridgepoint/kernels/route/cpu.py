"""Routing by the native kernels where they can serve, else for all tokens at once in torch ops."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import RouterSpec
from ridgepoint.kernels.route import native
from ridgepoint.kernels.tensor_call import takes

NEVER = float("-inf")


def route(
    logits_TE: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if logits_TE.dtype == torch.float32 and takes(logits_TE, correction_E):
        return native.route(logits_TE, correction_E, router, top_k)
    logits_TE = logits_TE.float()
    if router.scores == "sparsemixer":
        return _sparsemixer(logits_TE, router, top_k)
    if router.scores == "softmax":
        scores_TE = logits_TE.softmax(-1)
    elif router.scores == "sigmoid":
        scores_TE = logits_TE.sigmoid()
    else:
        scores_TE = logits_TE
    choice_TE = scores_TE.detach() if correction_E is None else scores_TE.detach() + correction_E
    if router.topk_groups < router.num_groups:
        choice_TE = _mask_groups(choice_TE, router)
    ids_TK = _top(choice_TE, top_k)
    weights_TK = scores_TE.gather(1, ids_TK)
    if router.scores == "softmax_topk":
        weights_TK = weights_TK.softmax(-1)
    if router.normalise:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    if router.scale != 1.0:
        weights_TK = weights_TK * router.scale
    return weights_TK, ids_TK


def _top(choice_TE: torch.Tensor, top_k: int) -> torch.Tensor:
    """Ids of the best `top_k`, best first, ties to the lower id. `topk` leaves ties open, a stable sort does not."""
    return choice_TE.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]


def _mask_groups(choice_TE: torch.Tensor, router: RouterSpec) -> torch.Tensor:
    grouped_TGE = choice_TE.unflatten(1, (router.num_groups, -1))
    if router.group_score == "max":
        score_TG = grouped_TGE.amax(-1)
    else:
        score_TG = grouped_TGE.topk(min(2, grouped_TGE.shape[-1]), dim=-1).values.sum(-1)
    keep_TG = torch.zeros_like(score_TG, dtype=torch.bool).scatter_(1, _top(score_TG, router.topk_groups), True)
    return grouped_TGE.masked_fill(~keep_TG[..., None], NEVER).flatten(1)


def _sparsemixer(logits_TE: torch.Tensor, router: RouterSpec, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert router.jitter_eps is not None
    free_TE, weights, ids = logits_TE, [], []
    for _ in range(top_k):
        id_T1 = _top(free_TE.detach(), 1)
        best_T1 = free_TE.gather(1, id_T1)
        far_TE = (best_T1 - free_TE) / torch.maximum(logits_TE.abs(), best_T1) > 2 * router.jitter_eps
        weights.append(free_TE.masked_fill(far_TE, NEVER).softmax(-1).gather(1, id_T1))
        ids.append(id_T1)
        free_TE = free_TE.scatter(1, id_T1, NEVER)
    return torch.cat(weights, dim=1) * router.scale, torch.cat(ids, dim=1)
