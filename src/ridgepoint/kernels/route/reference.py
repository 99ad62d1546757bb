"""Definition of routing, one token at a time."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import RouterSpec


def route(
    logits_TE: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if logits_TE.shape[0] == 0:
        return logits_TE.new_zeros(0, top_k), torch.zeros(0, top_k, dtype=torch.long, device=logits_TE.device)
    pairs = [_route_token(logits_E, correction_E, router, top_k) for logits_E in logits_TE.float()]
    ids_TK = torch.tensor([ids for _, ids in pairs], dtype=torch.long, device=logits_TE.device)
    return torch.stack([weights for weights, _ in pairs]), ids_TK


def _route_token(
    logits_E: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, list[int]]:
    if router.scores == "sparsemixer":
        return _sparsemixer(logits_E, router, top_k)
    scores_E = {
        "softmax": lambda: logits_E.softmax(-1),
        "sigmoid": lambda: logits_E.sigmoid(),
        "softmax_topk": lambda: logits_E,
    }[router.scores]()
    choice = scores_E if correction_E is None else scores_E + correction_E
    allowed = set(_allowed_experts(choice.tolist(), router))
    ids = [expert for expert in _best_first(choice.tolist()) if expert in allowed][:top_k]
    weights = scores_E[ids]
    if router.scores == "softmax_topk":
        weights = weights.softmax(-1)
    if router.normalise:
        weights = weights / (weights.sum() + 1e-20)
    return weights * router.scale, ids


def _allowed_experts(choice: list[float], router: RouterSpec) -> list[int]:
    size = len(choice) // router.num_groups
    groups = [range(g * size, (g + 1) * size) for g in range(router.num_groups)]
    best = [sorted((choice[e] for e in group), reverse=True) for group in groups]
    # Sums of float32, as models define them: in Python's floats, equal groups would differ.
    score = [values[0] if router.group_score == "max" else float(torch.tensor(values[:2]).sum()) for values in best]
    return [expert for g in _best_first(score)[: router.topk_groups] for expert in groups[g]]


def _sparsemixer(logits_E: torch.Tensor, router: RouterSpec, top_k: int) -> tuple[torch.Tensor, list[int]]:
    """Phi-3.5-MoE: the k-th expert is the best not yet taken; its weight is its share of a softmax over the experts
    within the jitter mask of that best (the mask measured relative to the logits' magnitude)."""
    assert router.jitter_eps is not None
    weights, ids = [], []
    for _ in range(top_k):
        free = [e for e in range(len(logits_E)) if e not in ids]
        best = max(free, key=lambda e: (float(logits_E[e]), -e))
        top = float(logits_E[best])
        near = [
            e for e in free if (top - float(logits_E[e])) / max(abs(float(logits_E[e])), top) <= 2 * router.jitter_eps
        ]
        weights.append(logits_E[near].softmax(-1)[near.index(best)])
        ids.append(best)
    return torch.stack(weights) * router.scale, ids


def _best_first(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))
