"""The arithmetic of a step: written-out gradients against autograd through the plain definition, and evaluation."""

from __future__ import annotations

import lzma
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ridgepoint.train.evaluate import bits_per_byte, windows, xz_bits_per_byte
from ridgepoint.train.pointwise import Pointwise
from ridgepoint.train.products import ROW_ALIGN, CausalAttention, RoutedExperts, VocabularyLoss, expert_rows

OPS = Pointwise(compiled=False)
# float32 sums in another order; values and gradients here are of order 1 to 100
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def _agree(fast: torch.Tensor, plain: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(fast, plain, **TOLERANCE)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(5))
    got, want = (torch.autograd.grad(y, inputs, upstream) for y in (fast, plain))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("length", [48, 600])
def test_attention_agrees_with_the_fused_op(length: int) -> None:
    torch.manual_seed(0)
    batch, groups, rows, width = 2, 2, 3, 8
    q = torch.randn(batch, groups * rows, length, width, requires_grad=True)
    k, v = (torch.randn(batch, groups, length, width, requires_grad=True) for _ in range(2))
    wide = (x.repeat_interleave(rows, dim=1) for x in (k, v))
    plain = F.scaled_dot_product_attention(q, *wide, is_causal=True, scale=0.3)
    folded = q.view(batch, groups, rows, length, width).transpose(2, 3).reshape(batch * groups, -1, width)
    fast = CausalAttention.apply(folded, k.reshape(-1, length, width), v.reshape(-1, length, width), 0.3, OPS)
    fast = fast.view(batch, groups, length, rows, width).transpose(2, 3).reshape_as(q)
    _agree(fast, plain, (q, k, v))


def test_experts_agree_with_a_loop_over_tokens() -> None:
    torch.manual_seed(1)
    tokens, width, experts, top_k, inner = 40, 16, 6, 2, 8
    x = torch.randn(tokens, width, requires_grad=True)
    weights = torch.rand(tokens, top_k, requires_grad=True)
    ids = torch.stack([torch.randperm(experts - 1)[:top_k] for _ in range(tokens)])  # the last expert stays empty
    gate_up = torch.randn(experts, 2 * inner, width, requires_grad=True)
    down = torch.randn(experts, width, inner, requires_grad=True)
    outputs = []
    for t in range(tokens):
        total = torch.zeros(width)
        for k in range(top_k):
            gate, up = (gate_up[ids[t, k]] @ x[t]).chunk(2)
            total = total + weights[t, k] * (down[ids[t, k]] @ (F.silu(gate) * up))
        outputs.append(total)
    fast = RoutedExperts.apply(x, weights, ids, gate_up, down, OPS)
    _agree(fast, torch.stack(outputs), (x, weights, gate_up, down))


def test_expert_rows_keep_every_choice_in_its_expert() -> None:
    torch.manual_seed(2)
    ids = torch.stack([torch.randperm(7)[:3] for _ in range(50)])
    place, token, ends = expert_rows(ids, 8)
    assert place.unique().numel() == ids.numel()
    assert torch.equal(token[place], torch.arange(50)[:, None].expand(50, 3))
    assert (ends % ROW_ALIGN == 0).all()
    assert torch.equal(torch.searchsorted(ends.long(), place, right=True), ids)


def test_vocabulary_loss_agrees_with_cross_entropy() -> None:
    torch.manual_seed(3)
    x = torch.randn(1500, 12, requires_grad=True)
    head = torch.randn(40, 12, requires_grad=True)
    targets = torch.randint(0, 40, (1500,))
    fast = VocabularyLoss.apply(x, head, targets, OPS)
    plain = F.cross_entropy(x @ head.t(), targets, reduction="sum")
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=0)
    for a, b in zip(
        torch.autograd.grad(fast / 1500, (x, head)), torch.autograd.grad(plain / 1500, (x, head)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("tokens", "context", "stride"), [(5, 8, 4), (8, 8, 4), (9, 8, 4), (37, 8, 3), (64, 16, 16)])
def test_every_token_is_scored_once_in_reach_of_its_context(tokens: int, context: int, stride: int) -> None:
    document = np.arange(1, tokens + 1)
    scored = []
    for ids, targets, first in windows(document, 0, context, stride):
        assert len(ids) == len(targets) <= context
        assert np.array_equal(ids + 1, targets)
        scored += targets[first:].tolist()
    assert scored == document.tolist()


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary() -> None:
    documents = [np.arange(20), np.arange(7)]
    bits = bits_per_byte(
        lambda ids, targets: torch.full(ids.shape, math.log(16)), documents, 54, start_id=0, context=8, stride=4
    )
    assert bits == pytest.approx(4 * 27 / 54)


def test_xz_is_xz() -> None:
    texts = ["def f():\n    return 1\n" * 9, "x = 2\n"]
    packed = lzma.compress("".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
    assert xz_bits_per_byte(texts, concatenated=True) == 8 * len(packed) / sum(map(len, texts))
    assert xz_bits_per_byte(texts, concatenated=False) > xz_bits_per_byte(texts, concatenated=True)
