"""Native latent attention against its definition, in every KV format, over caches whose unused slots are NaN."""

from __future__ import annotations

import pytest
import torch
from native_support import FLOAT32_ERROR, ISAS, needs_native, rms, same_bits_whoever_computes

from ridgepoint.kernels import mla_attention, native, paged_attention
from ridgepoint.kernels.packed import pack
from ridgepoint.kernels.paged_attention.native import is_native, stored

pytestmark = needs_native
BLOCK, SCALE = 16, 0.17
ROUNDED_STEPS = 1.25  # slack over a computation that rounds queries, weights and results to bf16 where the kernels do
FORMATS = [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn]


class Case:
    """Sequences of `contexts` tokens of which the last `queries` are this step's."""

    def __init__(
        self,
        contexts: list[int],
        queries: list[int],
        heads: int,
        latent: int,
        rope: int,
        window: int | None,
        dtype: torch.dtype,
    ) -> None:
        g = torch.Generator().manual_seed(latent + heads)
        self.contexts, self.queries, self.heads, self.latent, self.rope, self.window, self.dtype = (
            contexts, queries, heads, latent, rope, window, dtype,
        )  # fmt: skip
        blocks = max(-(-c // BLOCK) for c in contexts)
        self.tables = torch.randperm(len(contexts) * blocks, generator=g).view(len(contexts), blocks)
        self.latents = [torch.randn(c, latent, generator=g).to(dtype) for c in contexts]
        self.ropes = [3 * torch.randn(c, rope, generator=g).to(dtype) for c in contexts]
        # Slices of one projection, as the layer hands them over.
        q = torch.randn(sum(queries), heads, 12 + rope, generator=g).to(dtype)
        self.q_nope, self.q_rope = q.split((12, rope), dim=-1)
        self.w_uk = (torch.randn(heads, 12, latent, generator=g) / 4).to(dtype)
        self.w_uv = (torch.randn(heads, 10, latent, generator=g) / latent**0.5).to(dtype)

    def slots(self, b: int) -> torch.Tensor:
        position = torch.arange(self.contexts[b])
        return self.tables[b][position // BLOCK] * BLOCK + position % BLOCK

    def cache(self, fmt: torch.dtype) -> torch.Tensor:
        kv = mla_attention.allocate(self.tables.numel(), BLOCK, self.latent, self.rope, fmt, "cpu")
        kv.view(torch.uint8).fill_(255)
        for b in range(len(self.contexts)):
            mla_attention.write(kv, self.latents[b], self.ropes[b], self.slots(b))
        assert is_native(kv)
        return kv

    def attend(self, kv: torch.Tensor, packed: bool, only: int | None = None) -> torch.Tensor:
        starts = torch.tensor([0, *self.queries]).cumsum(0)
        chosen = list(range(len(self.contexts))) if only is None else [only]
        rows = torch.cat([torch.arange(int(starts[b]), int(starts[b + 1])) for b in chosen])
        w_uk = pack(self.w_uk.transpose(1, 2)) if packed else self.w_uk
        w_uv = pack(self.w_uv) if packed else self.w_uv
        counts = torch.tensor([0, *(self.queries[b] for b in chosen)]).cumsum(0)
        plan = paged_attention.prepare(
            counts, torch.tensor([self.contexts[b] for b in chosen]), self.tables[chosen], BLOCK
        )
        return mla_attention.attend(
            self.q_nope[rows], self.q_rope[rows], kv, w_uk, w_uv, plan, SCALE, self.window
        )  # fmt: skip

    def dense(self, kv: torch.Tensor, wide: bool) -> torch.Tensor:
        """The absorbed computation on what the cache holds; not `wide`: rounded to bf16 after each of its steps."""
        cut = (lambda x: x) if wide else (lambda x: x.bfloat16().double())
        keys, _, scales = stored(kv, self.latent + self.rope, 0)
        latents, ropes = (
            x[:, 0].double() * scales[:, 0, i : i + 1].double()
            for i, x in enumerate(keys.split((self.latent, self.rope), -1))
        )
        q_lat = cut(torch.einsum("thn,hnc->thc", self.q_nope.double(), self.w_uk.double()))
        out, start = [], 0
        for b, (context, queries) in enumerate(zip(self.contexts, self.queries, strict=True)):
            rows, slots = slice(start, start + queries), self.slots(b)
            logits = torch.einsum("qhc,kc->hqk", q_lat[rows], latents[slots]) + torch.einsum(
                "qhr,kr->hqk", self.q_rope[rows].double(), ropes[slots]
            )
            query, key = torch.arange(context - queries, context)[:, None], torch.arange(context)[None]
            hidden = (key > query) | ((key <= query - self.window) if self.window is not None else False)
            weights = cut((logits * SCALE).masked_fill(hidden, float("-inf")).softmax(-1))
            mixed = cut(torch.einsum("hqk,kc->qhc", weights, latents[slots]))
            out.append(cut(torch.einsum("qhc,hvc->qhv", mixed, self.w_uv.double())))
            start += queries
        return torch.cat(out)


SHAPES = {
    "decode and prefill": ([1, 40, 300, 77], [1, 1, 1, 60], 5, 64, 16, None),
    "many heads, window, odd latent": ([200, 18], [3, 1], 40, 22, 6, 50),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_agrees_with_the_definition_on_what_the_cache_holds(fmt: torch.dtype, name: str, isa: str) -> None:
    dtype = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case(*SHAPES[name], dtype)
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        got = case.attend(kv, packed=True)
    truth = case.dense(kv, wide=True)
    if dtype == torch.float32:
        assert rms(got.double() - truth) <= 2 * FLOAT32_ERROR * rms(truth)
    else:
        assert rms(got.double() - truth) <= ROUNDED_STEPS * rms(case.dense(kv, wide=False) - truth)


def test_unpacked_weights_agree_with_packed_ones() -> None:
    case = Case(*SHAPES["decode and prefill"], torch.float32)
    kv = case.cache(torch.float32)
    assert torch.allclose(case.attend(kv, packed=False), case.attend(kv, packed=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_bits_depend_on_the_query_alone(fmt: torch.dtype, isa: str) -> None:
    dtype = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case([2300, 40, 77], [2, 1, 33], 3, 32, 8, None, dtype)
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        whole = same_bits_whoever_computes(lambda: case.attend(kv, packed=True))
        starts = torch.tensor([0, *case.queries]).cumsum(0)
        for b in range(3):
            assert torch.equal(case.attend(kv, True, b), whole[starts[b] : starts[b + 1]])


def test_packed_weights_serve_caches_of_torch_too() -> None:
    """Blocks of 8 tokens are not native; packed weights absorb all the same."""
    case = Case([20, 9], [20, 1], 3, 16, 4, None, torch.float32)
    tables, size = torch.arange(6).view(2, 3), 8
    kv = mla_attention.allocate(6, size, 16, 4, torch.float32, "cpu")
    assert not is_native(kv)
    for b, context in enumerate(case.contexts):
        position = torch.arange(context)
        mla_attention.write(kv, case.latents[b], case.ropes[b], tables[b][position // size] * size + position % size)
    plan = paged_attention.prepare(torch.tensor([0, 20, 21]), torch.tensor(case.contexts), tables, size)
    args = (case.q_nope, case.q_rope, kv)
    plain = mla_attention.attend(*args, case.w_uk, case.w_uv, plan, SCALE, None)
    packed = mla_attention.attend(*args, pack(case.w_uk.transpose(1, 2)), pack(case.w_uv), plan, SCALE, None)
    assert torch.allclose(plain, packed, rtol=1e-4, atol=1e-5)
