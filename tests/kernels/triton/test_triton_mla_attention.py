"""Latent attention's Triton kernels against the definition, over caches whose unowned slots are NaN."""

from __future__ import annotations

import pytest
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.mla_attention import reference, triton_lifted
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.mla_attention.triton_lifted import lift_of
from ridgepoint.kernels.paged_attention import reference as paged_reference
from ridgepoint.kernels.paged_attention import triton as paged_path
from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.kernels.paged_attention.triton_plan import Cut

F32_ORDER = 5e-6  # absorbed against lifted: the same sums in another order, twice
BF16_ROUNDING = 2e-2  # of queries in the latent space, weights and results; four roundings deep


class Case:
    """Sequences of `contexts` tokens of which the last `queries` are this step's."""

    def __init__(
        self,
        contexts: list[int],
        queries: list[int],
        num_heads: int = 3,
        widths: tuple[int, int, int, int] = (10, 4, 7, 24),
        page: int = 16,
        dtype: torch.dtype = torch.float32,
        kept: torch.dtype | None = None,
    ) -> None:
        made = torch.Generator().manual_seed(sum(contexts))
        nope, rope, value, latent = widths
        blocks = max(-(-c // page) for c in contexts)
        self.page, self.rope, self.latent, self.contexts = page, rope, latent, contexts
        self.tables = torch.randperm(len(contexts) * blocks + 2, generator=made)[: len(contexts) * blocks].view(
            -1, blocks
        )
        num_blocks = self.tables.numel() + 2
        self.kv = path.allocate(num_blocks, page, latent, rope, kept or dtype, "cpu")
        self.plain = reference.allocate(num_blocks, page, latent, rope, torch.float32, "cpu")
        self.kv.view(torch.uint8).fill_(0x7F if self.kv.dtype == torch.int8 else 0xFF)  # NaN in every float type
        for b, context in enumerate(contexts):
            position = torch.arange(context)
            slots = self.tables[b][position // page] * page + position % page
            rows = torch.randn(context, latent + rope + 3, generator=made).to(dtype)
            parts = rows[:, :latent], rows[:, latent : latent + rope]  # slices, as the projection gives them
            path.write(self.kv, *parts, slots)
            reference.write(self.plain, *(part.float() for part in parts), slots)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=made).to(dtype)

        q = randn(sum(queries), num_heads, nope + rope)
        self.q = q.split((nope, rope), dim=-1)
        self.w_uk, self.w_uv = randn(num_heads, nope, latent) * 0.3, randn(num_heads, value, latent) * 0.3
        self.sequences = torch.tensor([0, *queries]).cumsum(0), torch.tensor(contexts), self.tables

    def got(self, window: int | None) -> torch.Tensor:
        plan = paged_path.prepare(*self.sequences, self.page)
        return path.attend(*self.q, self.kv, self.w_uk, self.w_uv, plan, 0.3, window)

    def want(self, window: int | None, kv: torch.Tensor | None = None) -> torch.Tensor:
        plan = paged_reference.prepare(*self.sequences, self.page)
        q_nope, q_rope, w_uk, w_uv = (x.float() for x in (*self.q, self.w_uk, self.w_uv))
        return reference.attend(q_nope, q_rope, self.plain if kv is None else kv, w_uk, w_uv, plan, 0.3, window)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize(("heads", "window"), [(3, None), (20, 20)])  # several queries a tile; several tiles a query
def test_agrees_with_the_definition(heads: int, window: int | None) -> None:
    case = Case([5, 30, 1, 300], [5, 13, 1, 1], heads)
    assert error(case.got(window), case.want(window)) < F32_ORDER


@pytest.mark.parametrize("heads", [4, 70])
def test_agrees_in_bf16(heads: int) -> None:
    case = Case([260, 33], [1, 7], heads, (32, 16, 32, 64), dtype=torch.bfloat16)
    got = case.got(None)
    assert got.dtype == torch.bfloat16 and error(got, case.want(None)) < BF16_ROUNDING


def is_lifted(case: Case, queries: int, context: int, window: int | None) -> bool:
    """By counted multiply-adds of one head, as the paths' products have them."""
    nope, value = case.w_uk.shape[1], case.w_uv.shape[1]
    keys = context if window is None else min(context, window + queries - 1)
    pairs = queries * (keys if window is None else min(keys, window))
    lifted = keys * case.latent * (nope + value) + pairs * (nope + case.rope + value)
    absorbed = queries * case.latent * (nope + value) + pairs * (2 * case.latent + case.rope)
    return lifted < absorbed


@pytest.mark.parametrize("window", [None, 40])
def test_what_takes_fewer_products_is_chosen(window: int | None) -> None:
    """Prompts alone, prompts after much, decoding: each sequence is in exactly one list, and the lists say what counting says."""
    case = Case([40, 5, 130, 140, 30, 1], [40, 5, 2, 35, 1, 1])
    plan, num_tokens = paged_path.prepare(*case.sequences, case.page), 84
    lift = lift_of(case.latent, *(w.shape[1] for w in (case.w_uk, case.w_uv)))
    assert lift is not None
    others = plan.work(Cut(window, 1, 8, parts=3, lift=lift), num_tokens)
    lifted = plan.work(Cut(window, 1, 8, lift=lift, lifted=True), num_tokens)
    shorts, longs = (
        set(items[: int(count), 0].tolist())
        for items, count in zip((others.short_items, others.long_items), others.counts, strict=True)
    )
    in_keys, in_queries = (
        set(items[: int(count), 0].tolist())
        for items, count in zip((lifted.short_items, lifted.long_items), lifted.counts, strict=True)
    )
    assert in_keys == in_queries and not (shorts & longs or (shorts | longs) & in_keys)
    starts, contexts, _ = case.sequences
    for b, (queries, context) in enumerate(zip(starts.diff().tolist(), contexts.tolist(), strict=True)):
        place = shorts if queries == 1 else in_keys if is_lifted(case, queries, context, window) else longs
        assert b in place, b
    assert in_keys and longs and int(lifted.counts[0]) <= len(lifted.short_items)


@pytest.mark.parametrize(
    ("window", "kept"), [(40, None), (None, torch.float8_e4m3fn), (None, torch.int8)], ids=["plain", "fp8", "int8"]
)
def test_lifted_prompts_agree_with_the_definition(
    window: int | None, kept: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside absorbed and decoding sequences, head by head."""
    case = Case([20, 130, 140, 33], [20, 2, 35, 1], 2, kept=kept)
    monkeypatch.setattr(triton_lifted, "ROOM_BYTES", 17 * 4 * 1600)
    monkeypatch.setattr(triton_lifted, "KEY_TILE", 32)
    assert [is_lifted(case, q, c, window) for q, c in ((20, 20), (2, 130), (35, 140))] == [True, False, True]
    by_hand = None if kept is None else decoded(case)
    assert error(case.got(window), case.want(window, by_hand)) < F32_ORDER


@pytest.mark.parametrize(("contexts", "queries", "window"), [([140, 75], [70, 75], None), ([40, 90], [40, 90], 30)])
def test_prompts_known_to_be_lifted_are_not_absorbed_too(
    contexts: list[int], queries: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(contexts, queries, 2, (32, 16, 48, 64))
    assert all(is_lifted(case, q, c, window) for q, c in zip(queries, contexts, strict=True))
    least, cached = min(queries), max(c - q for q, c in zip(queries, contexts, strict=True))
    apart = case.got(window)
    for known in (None, Known(least, 4096), Known(1, 0), Known(least, cached)):
        plan = paged_path.prepare(*case.sequences, case.page, known=known)
        if known == Known(least, cached):
            monkeypatch.setattr(path, "_attend_latents", None)
        assert torch.equal(path.attend(*case.q, case.kv, case.w_uk, case.w_uv, plan, 0.3, window), apart), known


def test_lifted_prompts_agree_in_bf16() -> None:
    case = Case([140, 20], [70, 20], 2, (32, 16, 48, 64), dtype=torch.bfloat16)
    assert is_lifted(case, 70, 140, None)
    assert error(case.got(None), case.want(None)) < BF16_ROUNDING


def decoded(case: Case) -> torch.Tensor:
    """What the one-byte blocks of a cache say, read by hand."""
    width, rows = case.latent + case.rope, case.kv.view(torch.uint8)
    codes = rows[:, : 16 * width].contiguous().view(case.kv.dtype).float().view(-1, 16, width)
    scales = rows[:, 16 * width :].contiguous().view(torch.float32).view(-1, 16, 2)
    return codes * scales.repeat_interleave(torch.tensor([case.latent, case.rope]), dim=2)


@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_one_byte_blocks_hold_two_scales_per_token(kept: torch.dtype) -> None:
    """The blocks are read by hand here: what attention computes is what they say, and they say what was written."""
    case = Case([300, 33], [1, 9], kept=kept)
    by_hand = decoded(case)
    owned = case.plain.abs().amax(-1) > 0
    for part in (slice(0, case.latent), slice(case.latent, None)):
        plain = case.plain[..., part]
        largest = plain.abs().amax(-1, keepdim=True)
        bound = largest / 254 if kept == torch.int8 else plain.abs() / 16 + largest / 448 * 2**-10
        assert ((by_hand[..., part] - plain).abs() <= bound + 1e-6)[owned].all()
    assert error(case.got(None), case.want(None, by_hand)) < F32_ORDER


def test_negative_slots_are_not_written() -> None:
    kv = path.allocate(2, 16, 8, 4, torch.bfloat16, "cpu")
    path.write(kv, torch.ones(2, 8).bfloat16(), torch.ones(2, 4).bfloat16(), torch.tensor([-1, 17]))
    assert int((kv != 0).sum()) == 12 and bool((kv[1, 1] == 1).all())


def test_types_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kept as torch\.int16; allowed: torch\.bfloat16"):
        path.allocate(1, 16, 8, 4, torch.int16, "cpu")
    with pytest.raises(ConfigError, match="unaligned"):
        path.allocate(1, 1, 2, 1, torch.int8, "cpu")


def test_a_step_beyond_32_bits_of_queries_is_refused() -> None:
    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    tokens, heads = 33_000, 128
    plan = paged_path.prepare(meta(2), meta(1), meta(1, 2100), 16)
    lifts = meta(heads, 16, 512), meta(heads, 16, 512)
    with pytest.raises(ConfigError, match="allowed: 32767"):
        path.attend(meta(tokens, heads, 16), meta(tokens, heads, 64), meta(2100, 16, 576), *lifts, plan, 0.1, None)
