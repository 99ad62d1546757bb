# mypy: disallow-untyped-defs=False
"""Routing on a GPU: one program a token, so a token's choice cannot depend on its company. Sparsemixer stays in torch ops,
which do not wait for the device either."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.catalog.spec import RouterSpec
from ridgepoint.kernels.route import cpu
from ridgepoint.kernels.triton_call import after_previous, on_device, overlapped, wants_gradient

SCORES = ("softmax", "sigmoid", "softmax_topk")


def route(
    logits_TE: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    served = logits_TE.dtype == torch.float32 and on_device(logits_TE) and not wants_gradient(logits_TE, correction_E)
    if router.scores not in SCORES or not served:
        return cpu.route(logits_TE, correction_E, router, top_k)
    num_tokens, num_experts = logits_TE.shape
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int64, device=logits_TE.device)
    if num_tokens == 0:
        return weights_TK, ids_TK
    size = num_experts // router.num_groups
    slots = triton.next_power_of_2(router.num_groups) * triton.next_power_of_2(size)
    _route[(num_tokens,)](
        logits_TE, logits_TE.stride(0), logits_TE.stride(1), correction_E, weights_TK, ids_TK, router.scale,
        SIZE=size, NUM_GROUPS=router.num_groups, TOPK_GROUPS=router.topk_groups, TOP_K=top_k,
        GROUP_SLOTS=triton.next_power_of_2(router.num_groups), SIZE_SLOTS=triton.next_power_of_2(size),
        TOP_SLOTS=triton.next_power_of_2(top_k), SCORES=router.scores, TOP2_SUM=router.group_score == "top2_sum",
        NORMALISE=router.normalise, num_warps=1 if slots <= 256 else 4, **overlapped(),
    )  # fmt: skip
    return weights_TK, ids_TK


@triton.jit
def _best(values, ids, free):
    """The free id of the largest value, the lowest of equals. A NaN counts as largest, so an id is always found."""
    best = tl.max(tl.where(free, values, float("-inf")), 0)
    return tl.min(tl.where(free & ~(values < best), ids, 0x7FFFFFFF), 0)


@triton.jit
def _kept_groups(choice_GS, present_GS, NUM_GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr, TOP2_SUM: tl.constexpr,
                 GROUP_SLOTS: tl.constexpr, SIZE_SLOTS: tl.constexpr):  # fmt: skip
    """Whether each group is among the best, by its best expert or the sum of its best two."""
    shown_GS = tl.where(present_GS, choice_GS, float("-inf"))
    score_G = tl.max(shown_GS, 1)
    if TOP2_SUM and SIZE_SLOTS > 1:
        slot = tl.arange(0, SIZE_SLOTS)[None, :]
        first_G = tl.min(tl.where(shown_GS >= score_G[:, None], slot, SIZE_SLOTS), 1)
        second_G = tl.max(tl.where(slot == first_G[:, None], float("-inf"), shown_GS), 1)
        score_G += tl.where(second_G == float("-inf"), 0.0, second_G)
    groups = tl.arange(0, GROUP_SLOTS)
    free = groups < NUM_GROUPS
    kept = groups < 0
    for _ in tl.static_range(TOPK_GROUPS):
        taken = groups == _best(score_G, groups, free)
        kept = kept | taken
        free = free & ~taken
    return kept


@triton.jit
def _route(
    logits, token_stride, expert_stride, correction, weights, ids, scale,
    SIZE: tl.constexpr, NUM_GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr, TOP_K: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, SIZE_SLOTS: tl.constexpr, TOP_SLOTS: tl.constexpr, SCORES: tl.constexpr,
    TOP2_SUM: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Experts lie as [groups, experts of a group], both padded to powers of two."""
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    group, slot = tl.arange(0, GROUP_SLOTS)[:, None], tl.arange(0, SIZE_SLOTS)[None, :]
    expert_GS = group * SIZE + slot
    present_GS = (group < NUM_GROUPS) & (slot < SIZE)
    logit_GS = tl.load(logits + token * token_stride + expert_GS * expert_stride, mask=present_GS, other=float("-inf"))
    if SCORES == "softmax":
        power_GS = tl.exp(logit_GS - tl.max(tl.max(logit_GS, 1), 0))
        score_GS = power_GS / tl.sum(tl.sum(power_GS, 1), 0)
    elif SCORES == "sigmoid":
        score_GS = 1.0 / (1.0 + tl.exp(-logit_GS))
    else:
        score_GS = logit_GS
    choice_GS = score_GS
    if correction is not None:
        choice_GS += tl.load(correction + expert_GS, mask=present_GS, other=0.0).to(tl.float32)
    free_GS = present_GS
    if TOPK_GROUPS < NUM_GROUPS:
        kept_G = _kept_groups(choice_GS, present_GS, NUM_GROUPS, TOPK_GROUPS, TOP2_SUM, GROUP_SLOTS, SIZE_SLOTS)
        free_GS = free_GS & kept_G[:, None]
    choice, score, free = (
        choice_GS.reshape(GROUP_SLOTS * SIZE_SLOTS),
        score_GS.reshape(GROUP_SLOTS * SIZE_SLOTS),
        free_GS.reshape(GROUP_SLOTS * SIZE_SLOTS),
    )
    expert = expert_GS.reshape(GROUP_SLOTS * SIZE_SLOTS)
    place = tl.arange(0, TOP_SLOTS)
    weight_K = tl.full((TOP_SLOTS,), float("-inf") if SCORES == "softmax_topk" else 0.0, tl.float32)
    id_K = tl.zeros((TOP_SLOTS,), tl.int64)
    for k in tl.static_range(TOP_K):
        best = _best(choice, expert, free)
        taken = free & (expert == best)
        weight_K = tl.where(place == k, tl.sum(tl.where(taken, score, 0.0), 0), weight_K)
        id_K = tl.where(place == k, best.to(tl.int64), id_K)
        free = free & ~taken
    if SCORES == "softmax_topk":
        weight_K = tl.exp(weight_K - tl.max(weight_K, 0))
        weight_K /= tl.sum(weight_K, 0)
    if NORMALISE:
        weight_K /= tl.sum(weight_K, 0) + 1e-20
    tl.store(weights + token * TOP_K + place, weight_K * scale, mask=place < TOP_K)
    tl.store(ids + token * TOP_K + place, id_K, mask=place < TOP_K)
