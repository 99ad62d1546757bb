"""Prompts whose keys and values are lifted out of native latents: against their definition in every KV format, and the bits of
a token whoever computes it, in whatever chunk and company."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_support import FLOAT32_ERROR, ISAS, SLACK, needs_native, rms, same_bits_whoever_computes

from ridgepoint.catalog.lifting import lift_tokens
from ridgepoint.cost.attention import mixer_flops
from ridgepoint.cost.batch import Group
from ridgepoint.cost.shape import shape_of
from ridgepoint.kernels import mla_attention, native, paged_attention
from ridgepoint.kernels.mla_attention.lifts import lifts_of
from ridgepoint.kernels.packed import Packed, pack
from ridgepoint.kernels.paged_attention.native import stored
from ridgepoint.kernels.tensor_call import recording
from ridgepoint.plan.named import named_model

pytestmark = needs_native
BLOCK, SCALE = 16, 0.17
FORMATS = [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn]


class Case:
    """Sequences of `contexts` tokens, the first `prompts` of them given, of which the last `queries` are this step's."""

    def __init__(
        self, contexts: list[int], prompts: list[int], queries: list[int], *, heads: int = 3, latent: int = 32, rope: int = 6,
        nope: int = 12, value: int = 9, window: int | None = None, dtype: torch.dtype = torch.bfloat16, weights: str | None = None,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(latent + heads)
        self.contexts, self.prompts, self.queries, self.window, self.latent, self.rope, self.nope = (
            contexts, prompts, queries, window, latent, rope, nope,
        )  # fmt: skip
        blocks = max(-(-c // BLOCK) for c in contexts)
        self.tables = torch.randperm(len(contexts) * blocks, generator=g).view(len(contexts), blocks)
        self.latents = [torch.randn(c, latent, generator=g).to(dtype) for c in contexts]
        self.ropes = [2 * torch.randn(c, rope, generator=g).to(dtype) for c in contexts]
        # Of every token of every sequence, and slices of one projection, as the layer hands them over.
        self.q = [torch.randn(c, heads, nope + rope, generator=g).to(dtype) for c in contexts]
        w_uk = (torch.randn(heads, nope, latent, generator=g) / 4).to(dtype)
        w_uv = (torch.randn(heads, value, latent, generator=g) / latent**0.5).to(dtype)
        self.w_uk, self.w_uv = pack(w_uk.transpose(1, 2), weights), pack(w_uv, weights)
        run = lift_tokens(latent, nope, value)
        assert run is not None
        self.run = run

    def slots(self, b: int) -> torch.Tensor:
        position = torch.arange(self.contexts[b])
        return self.tables[b][position // BLOCK] * BLOCK + position % BLOCK

    def cache(self, fmt: torch.dtype) -> torch.Tensor:
        kv = mla_attention.allocate(self.tables.numel(), BLOCK, self.latent, self.rope, fmt, "cpu")
        kv.view(torch.uint8).fill_(255)  # NaN, or the largest code under a NaN scale
        for b in range(len(self.contexts)):
            mla_attention.write(kv, self.latents[b], self.ropes[b], self.slots(b))
        return kv

    def attend(self, kv: torch.Tensor, pieces: list[tuple[int, int, int]] | None = None) -> torch.Tensor:
        """`pieces` are (sequence, first token, end); default: the last `queries` of each sequence."""
        pieces = pieces or [(b, c - q, c) for b, (c, q) in enumerate(zip(self.contexts, self.queries, strict=True))]
        chosen = [b for b, _, _ in pieces]
        starts = torch.tensor([0, *(end - first for _, first, end in pieces)]).cumsum(0)
        plan = paged_attention.prepare(
            starts, torch.tensor([end for _, _, end in pieces]), self.tables[chosen], BLOCK,
            torch.tensor([self.prompts[b] for b in chosen]),
        )  # fmt: skip
        q = torch.cat([self.q[b][first:end] for b, first, end in pieces])
        q_nope, q_rope = q.split((self.nope, self.rope), dim=-1)
        return mla_attention.attend(q_nope, q_rope.contiguous(), kv, self.w_uk, self.w_uv, plan, SCALE, self.window)

    def dense(self, kv: torch.Tensor, wide: bool) -> torch.Tensor:
        """On what the cache and the packed weights hold; not `wide`: rounded to bf16 after each step of a token's form."""
        cut = (lambda x: x) if wide else (lambda x: x.bfloat16().double())
        keys, _, scales = stored(kv, self.latent + self.rope, 0)
        latents, ropes = (
            cut(x[:, 0].double() * scales[:, 0, i : i + 1].double())
            for i, x in enumerate(keys.split((self.latent, self.rope), -1))
        )
        w_uk, w_uv = self.w_uk.dense().double().transpose(1, 2), self.w_uv.dense().double()
        out = []
        for b, (context, queries) in enumerate(zip(self.contexts, self.queries, strict=True)):
            query, key = torch.arange(context - queries, context), torch.arange(context)
            q_nope, q_rope = self.q[b][query].double().split((self.nope, self.rope), -1)
            latent, rope = latents[self.slots(b)], ropes[self.slots(b)]
            rotary = torch.einsum("qhr,kr->hqk", q_rope, rope)
            hidden = key > query[:, None]
            if self.window is not None:
                hidden |= key <= query[:, None] - self.window

            def weigh(logits: torch.Tensor, hidden: torch.Tensor = hidden) -> torch.Tensor:
                return cut((logits * SCALE).masked_fill(hidden, float("-inf")).softmax(-1))

            k, v = (cut(torch.einsum("kc,hnc->hkn", latent, w)) for w in (cut(w_uk), cut(w_uv)))
            lifted = torch.einsum("hqk,hkv->qhv", weigh(torch.einsum("qhn,hkn->hqk", q_nope, k) + rotary), v)
            absorbed = cut(torch.einsum("qhn,hnc->qhc", q_nope, w_uk))
            mixed = torch.einsum("hqk,kc->qhc", weigh(torch.einsum("qhc,kc->hqk", absorbed, latent) + rotary), latent)
            is_lifted = query < self.prompts[b] // self.run * self.run
            absorbed = torch.einsum("qhc,hvc->qhv", cut(mixed), w_uv)
            out.append(cut(torch.where(is_lifted[:, None, None], lifted, absorbed)))
        return torch.cat(out)


STEPS = {
    "a prompt, two pieces of prompts, decoding": ([300, 77, 64, 40], [300, 77, 64, 39], [300, 45, 1, 1]),
    "long contexts": ([1100, 70], [1090, 70], [75, 70]),
}
SHAPES = {
    "plain": {},
    "many heads, window": {"heads": 21, "window": 50},
    "odd sizes": {"latent": 22, "rope": 2},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_agrees_with_the_definition_on_what_the_cache_holds(fmt: torch.dtype, step: str, shape: str, isa: str) -> None:
    dtype = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case(*STEPS[step], dtype=dtype, **SHAPES[shape])
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        got = case.attend(kv)
    truth = case.dense(kv, wide=True)
    bound = (
        2 * FLOAT32_ERROR * rms(truth) if dtype == torch.float32 else SLACK * rms(case.dense(kv, wide=False) - truth)
    )
    assert rms(got.double() - truth) <= bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "fmt"), [(torch.float32, torch.bfloat16), (torch.float32, torch.int8), (torch.bfloat16, torch.float32)])  # fmt: skip
def test_a_cache_of_another_type_than_the_model(dtype: torch.dtype, fmt: torch.dtype, isa: str) -> None:
    case = Case([100, 30], [100, 30], [90, 2], dtype=dtype)
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        got = case.attend(kv)
    truth = case.dense(kv, wide=True)
    bound = 2 * FLOAT32_ERROR if dtype == torch.float32 else 2**-8
    assert rms(got.double() - truth) <= bound * rms(truth)


@pytest.mark.parametrize("weights", ["int8", "int4-32", "fp8"])
def test_quantised_weights_lift_by_what_they_hold(weights: str) -> None:
    case = Case([200], [200], [200], latent=128, weights=weights)
    kv = case.cache(torch.bfloat16)
    truth = case.dense(kv, wide=True)
    assert rms(case.attend(kv).double() - truth) <= SLACK * rms(case.dense(kv, wide=False) - truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_bits_depend_on_the_query_and_its_prompt_alone(fmt: torch.dtype, isa: str) -> None:
    """Together and alone, in one chunk and in pieces that cut runs, on any number of threads."""
    dtype = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case([1150, 40, 77], [1120, 40, 70], [1150, 1, 77], dtype=dtype)
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        whole = same_bits_whoever_computes(lambda: case.attend(kv))
        long, one, short = whole.split([1150, 1, 77])
        assert torch.equal(case.attend(kv, [(1, 39, 40)]), one)
        assert torch.equal(case.attend(kv, [(2, 0, 77)]), short)
        cuts = [0, 3, 500, 1023, 1088, 1119, 1123, 1150]
        for first, end in itertools.pairwise(cuts):
            got = case.attend(kv, [(2, 60, 77), (0, first, end)])
            assert torch.equal(got[:17], short[60:]) and torch.equal(got[17:], long[first:end])


def test_heads_that_do_not_fit_at_once_are_lifted_in_turns() -> None:
    """Two heads, then one, over 6 MB of keys and values each: the last is cut among threads unlike those before it."""
    case = Case([4352], [5120], [400], heads=3, latent=192, nope=192, value=128, dtype=torch.float32)
    kv = case.cache(torch.float32)
    got = same_bits_whoever_computes(lambda: case.attend(kv))
    assert torch.equal(case.attend(kv, [(0, 4000, 4100)]), got[48:148])
    truth = case.dense(kv, wide=True)
    assert rms(got.double() - truth) <= 2 * FLOAT32_ERROR * rms(truth)


def test_a_recorded_step_lifts_what_the_prompts_of_its_replay_say() -> None:
    case = Case([300, 77], [300, 77], [64, 64])
    kv, pieces = case.cache(torch.bfloat16), [(0, 236, 300), (1, 13, 77)]
    eager = case.attend(kv, pieces)
    lens_B, starts_B1 = torch.tensor([1, 1]), torch.tensor([0, 64, 128])
    plan = paged_attention.prepare(starts_B1, torch.tensor([300, 77]), case.tables, BLOCK, lens_B)
    q = torch.cat([case.q[b][first:end] for b, first, end in pieces])
    q_rope = q[..., case.nope :].contiguous()
    with recording(128, 1) as recorded:
        out = mla_attention.attend(q[..., : case.nope], q_rope, kv, case.w_uk, case.w_uv, plan, SCALE, None)
    recorded.replay(128, 0)
    assert not torch.equal(out, eager)  # nothing was a prompt
    lens_B.copy_(torch.tensor(case.prompts))
    recorded.replay(128, 0)
    assert torch.equal(out, eager)


def test_lifting_matrices_are_the_packed_ones_and_made_once() -> None:
    case = Case([20], [20], [20])
    lifts = lifts_of(case.w_uk, case.w_uv, is_float32=False)
    for rows, dense in ((lifts.uk_HNC, case.w_uk.dense().transpose(1, 2)), (lifts.uv_HVC, case.w_uv.dense())):
        assert torch.equal(torch.from_numpy(rows.view("int16")).view(torch.bfloat16).float(), dense)
    assert lifts_of(case.w_uk, case.w_uv, is_float32=False) is lifts


def test_lifting_is_chosen_by_counted_products() -> None:
    """At a run of queries the planner counts the lifted form as cheaper at any context, at half of one the absorbed."""
    assert lift_tokens(32, 40, 24) is None  # narrow latents are never lifted
    kinds = [kind for kind in shape_of(named_model("deepseek-v2-lite").spec).kinds if kind.mla]
    assert kinds
    for kind in kinds:
        mla = kind.mla
        assert mla is not None
        run = lift_tokens(mla.kv_rank, mla.nope_dim, mla.v_dim)
        assert run == 256
        for cached in (0.0, 512.0, 1e6):
            lifted = 2.0 * mla.num_heads * (
                (mla.nope_dim + mla.rope_dim + mla.v_dim) * run * (cached + run / 2)
                + mla.kv_rank * (mla.nope_dim + mla.v_dim) * cached
            )  # fmt: skip
            assert mixer_flops(kind, Group(count=1.0, new=float(run), cached=cached)) == pytest.approx(lifted)
        half = Group(count=1.0, new=run / 2, cached=1e6)
        pairs = half.new * (half.cached + half.new / 2)
        absorbed = 2.0 * mla.num_heads * (2 * mla.kv_rank + mla.rope_dim) * pairs
        assert mixer_flops(kind, half) == pytest.approx(absorbed)


def test_unpacked_weights_absorb_everything() -> None:
    case = Case([64], [64], [64], dtype=torch.float32)
    kv = case.cache(torch.float32)
    lifted = case.attend(kv)
    case.w_uk, case.w_uv = case.w_uk.dense().transpose(1, 2), case.w_uv.dense()  # type: ignore[assignment]
    assert not isinstance(case.w_uk, Packed)
    assert torch.allclose(case.attend(kv), lifted, rtol=1e-4, atol=1e-5)
