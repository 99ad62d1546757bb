"""Latent attention's Triton kernels against the definition, over caches whose unowned slots are NaN."""

from __future__ import annotations

import pytest
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.mla_attention import reference
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.paged_attention import reference as paged_reference
from ridgepoint.kernels.paged_attention import triton as paged_path

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


@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_one_byte_blocks_hold_two_scales_per_token(kept: torch.dtype) -> None:
    """The blocks are read by hand here: what attention computes is what they say, and they say what was written."""
    case = Case([300, 33], [1, 9], kept=kept)
    width, rows = case.latent + case.rope, case.kv.view(torch.uint8)
    codes = rows[:, : 16 * width].contiguous().view(kept).float().view(-1, 16, width)
    scales = rows[:, 16 * width :].contiguous().view(torch.float32).view(-1, 16, 2)
    by_hand = codes * scales.repeat_interleave(torch.tensor([case.latent, case.rope]), dim=2)
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
