"""Paged attention against its definition: mixed steps, windows, sinks, chunks over cached prefixes, scattered blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.kernels import mla_attention, paged_attention
from ridgepoint.kernels.dispatch import forced

RTOL = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


class Step:
    """Random sequences: (context, queries) each, over blocks shuffled through a pool whose unused rows are NaN."""

    def __init__(self, sequences: list[tuple[int, int]], block_tokens: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        widths = [-(-context // block_tokens) for context, _ in sequences]
        self.num_blocks = sum(widths) + 3
        free = torch.randperm(self.num_blocks, generator=g).tolist()
        self.tables = torch.zeros(len(sequences), max(widths) + 1, dtype=torch.long)
        self.slots: list[torch.Tensor] = []
        for b, ((context, _), width) in enumerate(zip(sequences, widths, strict=True)):
            self.tables[b, :width] = torch.tensor([free.pop() for _ in range(width)])
            position = torch.arange(context)
            self.slots.append(self.tables[b][position // block_tokens] * block_tokens + position % block_tokens)
        self.starts = torch.tensor([0, *torch.tensor([q for _, q in sequences]).cumsum(0).tolist()])
        self.contexts = torch.tensor([context for context, _ in sequences])
        self.num_queries, self.block_tokens, self.generator = int(self.starts[-1]), block_tokens, g

    def randn(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def prepare(self):
        return paged_attention.prepare(self.starts, self.contexts, self.tables, self.block_tokens)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    scale = max(1.0, float(want.float().abs().max()))
    return float((got.float() - want.float()).abs().max()) <= RTOL[got.dtype] * scale


SEQUENCES = st.lists(
    st.integers(1, 40).flatmap(
        lambda context: st.tuples(st.just(context), st.one_of(st.just(1), st.integers(1, context)))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(
    sequences=SEQUENCES,
    window=st.sampled_from([None, 1, 5, 16]),
    sinks=st.booleans(),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_gqa(sequences, window, sinks, heads, dtype, seed) -> None:
    step = Step(sequences, 8, seed)
    num_heads, num_kv_heads = heads
    kv = paged_attention.allocate(step.num_blocks, 8, num_kv_heads, 16, dtype, "cpu")
    for slots in step.slots:
        k, v = (step.randn(len(slots), num_kv_heads, 16, dtype=dtype) for _ in range(2))
        paged_attention.write(kv, k, v, slots)
    q = step.randn(step.num_queries, num_heads, 16, dtype=dtype)
    sinks_H = step.randn(num_heads, dtype=dtype) if sinks else None
    got = paged_attention.attend(q, kv, step.prepare(), 0.3, window, sinks_H)
    with forced("reference"):
        want = paged_attention.attend(q, kv, step.prepare(), 0.3, window, sinks_H)
    assert close(got, want)


@settings(max_examples=25, deadline=None)
@given(sequences=SEQUENCES, window=st.sampled_from([None, 6]), seed=st.integers(0, 99), latent=st.sampled_from([8, 32]))
def test_mla(sequences, window, seed, latent) -> None:
    """Both ways through: small latents are absorbed, wide ones lifted."""
    step, dtype = Step(sequences, 8, seed), torch.float32
    kv = mla_attention.allocate(step.num_blocks, 8, latent, 4, dtype, "cpu")
    for slots in step.slots:
        mla_attention.write(
            kv, step.randn(len(slots), latent, dtype=dtype), step.randn(len(slots), 4, dtype=dtype), slots
        )
    q_nope, q_rope = (step.randn(step.num_queries, 3, n, dtype=dtype) for n in (10, 4))
    w_uk, w_uv = step.randn(3, 10, latent, dtype=dtype) * 0.3, step.randn(3, 7, latent, dtype=dtype) * 0.3
    got = mla_attention.attend(q_nope, q_rope, kv, w_uk, w_uv, step.prepare(), 0.3, window)
    with forced("reference"):
        want = mla_attention.attend(q_nope, q_rope, kv, w_uk, w_uv, step.prepare(), 0.3, window)
    assert close(got, want)


@pytest.mark.parametrize("write_by", ["cpu", "reference"])
def test_both_paths_write_the_same_blocks(write_by: str) -> None:
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(5, 2, 4, generator=g), torch.randn(5, 2, 4, generator=g)
    slots = torch.tensor([3, 17, 0, 22, 9])
    with forced(write_by):
        kv = paged_attention.allocate(3, 8, 2, 4, torch.float32, "cpu")
        paged_attention.write(kv, k, v, slots)
        latents = mla_attention.allocate(3, 8, 6, 2, torch.float32, "cpu")
        mla_attention.write(latents, k.flatten(1)[:, :6], v.flatten(1)[:, :2], slots)
    assert torch.equal(kv[0, 0, :, 3], k[0]) and torch.equal(kv[2, 1, :, 6], v[3])
    assert int((kv != 0).any(-1).sum()) == 5 * 2 * 2
    assert torch.equal(latents[1, 1], torch.cat((k[4].flatten()[:6], v[4].flatten()[:2])))
