"""Caches beyond 2^31 elements: what is far away gives the bits that it gives nearby.

The cache is memory that the system hands out when it is touched, so the test needs pages for a few blocks alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ridgepoint.kernels.mla_attention import triton as mla
from ridgepoint.kernels.paged_attention import triton as paged

PAGE = 16
NEAR = [3, 0, 2]
TYPES = [torch.bfloat16, torch.float8_e4m3fn]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="asks for gigabytes of untouched memory")


def far_like(small: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """A cache of the same layout with more than 2^31 elements, and blocks at its ends."""
    num_blocks = 2**31 // small[0].numel() + 8
    memory = np.zeros(num_blocks * small[0].numel() * small.itemsize, np.uint8)
    return torch.from_numpy(memory).view(small.dtype).view(num_blocks, *small.shape[1:]), [
        num_blocks - 1,
        0,
        num_blocks - 3,
    ]


def sequence(blocks: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One of 40 tokens, decoding after (or, by its starts, computing) the last of them, and where each token lies."""
    position = torch.arange(40)
    tables = torch.tensor([blocks])
    return tables, tables[0, position // PAGE] * PAGE + position % PAGE, torch.tensor([40])


@pytest.mark.parametrize("kept", TYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 40])
def test_keys_and_values(kept: torch.dtype, queries: int) -> None:
    g = torch.Generator().manual_seed(0)
    k, v, q = (torch.randn(n, 2, 16, generator=g).bfloat16() for n in (40, 40, queries))
    near = paged.allocate(4, PAGE, 2, 16, kept, "cpu")
    results = []
    for kv, blocks in ((near, NEAR), far_like(near)):
        tables, slots, contexts = sequence(blocks)
        paged.write(kv, k, v, slots)
        plan = paged.prepare(torch.tensor([0, queries]), contexts, tables, PAGE)
        results.append(paged.attend(q, kv, plan, 0.25, None, None))
    assert bool(results[0].abs().sum() > 0) and torch.equal(*results)


@pytest.mark.parametrize("kept", TYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 2, 40])  # absorbed alone, absorbed in tiles, lifted
def test_latents(kept: torch.dtype, queries: int) -> None:
    g = torch.Generator().manual_seed(0)
    latent, rope_key = torch.randn(40, 24, generator=g).bfloat16(), torch.randn(40, 8, generator=g).bfloat16()
    q_nope, q_rope = (torch.randn(queries, 2, n, generator=g).bfloat16() for n in (16, 8))
    w_uk, w_uv = (torch.randn(2, 16, 24, generator=g).bfloat16() for _ in range(2))
    near = mla.allocate(4, PAGE, 24, 8, kept, "cpu")
    results = []
    for kv, blocks in ((near, NEAR), far_like(near)):
        tables, slots, contexts = sequence(blocks)
        mla.write(kv, latent, rope_key, slots)
        plan = paged.prepare(torch.tensor([0, queries]), contexts, tables, PAGE)
        results.append(mla.attend(q_nope, q_rope, kv, w_uk, w_uv, plan, 0.2, None))
    assert bool(results[0].abs().sum() > 0) and torch.equal(*results)
