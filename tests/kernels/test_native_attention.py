"""Native paged attention against its definition, in every KV format, over caches whose unused slots are NaN.

The truth is float64 on the numbers the cache holds: what a format loses by rounding keys and values is measured apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from native_support import FLOAT32_ERROR, ISAS, needs_native, rms, same_bits_whoever_computes, threads

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native, paged_attention
from ridgepoint.kernels.paged_attention import native as path
from ridgepoint.kernels.paged_attention import reference

pytestmark = needs_native
BLOCK = 32
ROUNDED_WEIGHTS = 1.25  # slack over a computation that rounds its softmax weights and its result to bf16


@dataclass
class Case:
    """Sequences of `contexts` tokens of which the last `queries` are this step's."""

    contexts: list[int]
    queries: list[int]
    heads: int
    kv_heads: int
    width: int
    window: int | None
    sinks: torch.Tensor | None
    compute: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        made = torch.Generator().manual_seed(sum(self.contexts) + self.width)
        blocks = max(-(-c // BLOCK) for c in self.contexts)
        self.tables = torch.randperm(len(self.contexts) * blocks, generator=made).view(len(self.contexts), blocks)
        self.keys, self.values = (
            [torch.randn(c, self.kv_heads, self.width, generator=made).to(self.compute) for c in self.contexts]
            for _ in "kv"
        )
        self.q = torch.randn(sum(self.queries), self.heads, self.width, generator=made).to(self.compute)

    def slots(self, b: int) -> torch.Tensor:
        position = torch.arange(self.contexts[b])
        return self.tables[b][position // BLOCK] * BLOCK + position % BLOCK

    def cache(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        kv = paged_attention.allocate(self.tables.numel(), BLOCK, self.kv_heads, self.width, dtype, "cpu")
        kv.view(torch.uint8).fill_(255)  # NaN in every format, scales included
        for b in range(len(self.contexts)):
            paged_attention.write(kv, self.keys[b], self.values[b], self.slots(b))
        assert path.is_native(kv)
        return kv

    def attend(self, kv: torch.Tensor, sequences: list[int] | None = None) -> torch.Tensor:
        chosen = range(len(self.contexts)) if sequences is None else sequences
        starts = torch.tensor([0, *self.queries]).cumsum(0)
        q = torch.cat([self.q[starts[b] : starts[b + 1]] for b in chosen])
        counts = torch.tensor([0, *(self.queries[b] for b in chosen)]).cumsum(0)
        contexts = torch.tensor([self.contexts[b] for b in chosen])
        plan = paged_attention.prepare(counts, contexts, self.tables[list(chosen)], BLOCK)
        return paged_attention.attend(q, kv, plan, self.width**-0.5, self.window, self.sinks)

    def held(self, kv: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of each sequence as the cache holds them."""
        keys, values, scales = path.stored(kv, self.width, self.width)
        slots = [self.slots(b) for b in range(len(self.contexts))]
        scaled = [(x * scales[..., i : i + 1]).double() for i, x in enumerate((keys, values))]
        return [scaled[0][s] for s in slots], [scaled[1][s] for s in slots]

    def dense(self, wide: bool, held: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None) -> torch.Tensor:
        """The definition over plain tensors; not `wide`: weights and result rounded to bf16 on the way."""
        out, start = [], 0
        all_keys, all_values = held or (self.keys, self.values)
        for b, (context, queries) in enumerate(zip(self.contexts, self.queries, strict=True)):
            group = self.heads // self.kv_heads
            k, v = (t[b].double().repeat_interleave(group, dim=1) for t in (all_keys, all_values))
            logits = torch.einsum("qhp,khp->hqk", self.q[start : start + queries].double(), k) * self.width**-0.5
            query, key = torch.arange(context - queries, context)[:, None], torch.arange(context)[None]
            hidden = key > query if self.window is None else (key > query) | (key <= query - self.window)
            logits = logits.masked_fill(hidden, float("-inf"))
            if self.sinks is not None:
                sink = self.sinks.double()[:, None, None].expand(-1, queries, 1)
                weights = torch.cat((logits, sink), -1).softmax(-1)[..., :-1]
            else:
                weights = logits.softmax(-1)
            if not wide:
                weights = weights.bfloat16().double()
            result = torch.einsum("hqk,khp->qhp", weights, v)
            out.append(result if wide else result.bfloat16().double())
            start += queries
        return torch.cat(out)


SINKS = torch.randn(8, generator=torch.Generator().manual_seed(0))
CASES = {
    "grouped": Case([1, 5, 40, 700], [1, 5, 7, 37], 8, 2, 64, None, None),
    "windowed_with_sinks": Case([3, 90, 33], [3, 20, 1], 4, 4, 16, 5, SINKS[:4]),
    "odd_width_long_window": Case([600, 1100], [1, 3], 6, 2, 24, 520, None),
    "one_kv_head": Case([31, 32, 33], [31, 1, 2], 7, 1, 128, None, SINKS[:7]),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(isa: str, name: str) -> None:
    case = CASES[name]
    with native.forced_isa(isa):
        got = case.attend(case.cache())
    truth = case.dense(wide=True)
    assert rms(got.double() - truth) <= ROUNDED_WEIGHTS * rms(case.dense(wide=False) - truth)


FORMATS = [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn]
HALF_STEP = {torch.bfloat16: 2.0**-8, torch.float32: 0.0, torch.int8: 0.5 / 127, torch.float8_e4m3fn: 2.0**-4}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format_agrees_with_the_definition_on_what_it_holds(
    fmt: torch.dtype, compute: torch.dtype, isa: str
) -> None:
    if fmt == torch.float32 and compute == torch.bfloat16:
        pytest.skip("a wider cache than the model's type is not offered")
    for name in ("grouped", "odd_width_long_window", "one_kv_head"):
        given = CASES[name]
        case = Case(
            given.contexts, given.queries, given.heads, given.kv_heads, given.width, given.window, given.sinks, compute
        )
        with native.forced_isa(isa):
            kv = case.cache(fmt)
            got = case.attend(kv)
        held = case.held(kv)
        truth = case.dense(True, held)
        if compute == torch.float32:
            assert rms(got.double() - truth) <= FLOAT32_ERROR * rms(truth)
        else:
            assert rms(got.double() - truth) <= ROUNDED_WEIGHTS * rms(case.dense(False, held) - truth)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_cache_holds_what_was_written_to_half_a_step(fmt: torch.dtype) -> None:
    case = Case([40, 3], [1, 1], 4, 2, 24, None, None, torch.float32)
    keys, values = case.held(case.cache(fmt))
    for given, got in ((case.keys, keys), (case.values, values)):
        for x, y in zip(given, got, strict=True):
            largest = x.abs().amax(-1, keepdim=True)
            of = x.abs().clamp(min=2.0**-6 / 448 * largest) if fmt == torch.float8_e4m3fn else largest
            assert bool(((x - y).abs() <= HALF_STEP[fmt] * of.double() * 1.001).all())


def test_codes_of_zero_and_of_the_largest_magnitude_are_exact() -> None:
    for fmt in (torch.int8, torch.float8_e4m3fn):
        kv = paged_attention.allocate(1, BLOCK, 1, 16, fmt, "cpu")
        k, v = torch.zeros(2, 1, 16), torch.zeros(2, 1, 16)
        k[0, 0, 3], v[1, 0, 5] = -6.5, 1e-20
        paged_attention.write(kv, k, v, torch.tensor([0, 31]))
        keys, values, scales = path.stored(kv, 16, 16)
        assert torch.allclose(keys[[0, 31]] * scales[[0, 31], :, :1], k, rtol=1e-6, atol=0)
        assert torch.allclose(values[[0, 31]] * scales[[0, 31], :, 1:], v, rtol=1e-6, atol=0)


LONG = Case([9000, 2500, 17], [1, 3, 1], 8, 2, 16, None, SINKS)
LONG_WINDOW = Case([5000, 3000], [2, 1], 4, 1, 16, 2200, None)


@pytest.mark.parametrize("case", [LONG, LONG_WINDOW], ids=["whole", "window"])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_long_contexts_are_shared_between_threads_without_a_trace(fmt: torch.dtype, case: Case) -> None:
    compute = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case(case.contexts, case.queries, case.heads, case.kv_heads, case.width, case.window, case.sinks, compute)
    kv = case.cache(fmt)
    whole = same_bits_whoever_computes(lambda: case.attend(kv))
    with threads(5):
        assert torch.equal(case.attend(kv), whole)
    starts = torch.tensor([0, *case.queries]).cumsum(0)
    for b in range(len(case.contexts)):
        assert torch.equal(case.attend(kv, [b]), whole[starts[b] : starts[b + 1]])
    held = case.held(kv)
    truth = case.dense(True, held)
    if compute == torch.float32:
        assert rms(whole.double() - truth) <= FLOAT32_ERROR * rms(truth)
    else:
        assert rms(whole.double() - truth) <= ROUNDED_WEIGHTS * rms(case.dense(False, held) - truth)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_the_query_alone(isa: str, fmt: torch.dtype) -> None:
    compute = torch.float32 if fmt == torch.float32 else torch.bfloat16
    case = Case([1, 5, 40, 700], [1, 5, 7, 37], 8, 2, 64, None, None, compute)
    with native.forced_isa(isa):
        kv = case.cache(fmt)
        whole = same_bits_whoever_computes(lambda: case.attend(kv))
        starts = torch.tensor([0, *case.queries]).cumsum(0)
        for b in range(4):
            assert torch.equal(case.attend(kv, [b]), whole[starts[b] : starts[b + 1]])
        # The last query of a long segment alone: as a decoding step.
        alone = Case(case.contexts, [1, 1, 1, 1], 8, 2, 64, None, None, compute)
        alone.tables, alone.q = case.tables, case.q[starts[1:] - 1]
        assert torch.equal(alone.attend(kv), whole[starts[1:] - 1])


def test_the_reference_path_agrees_too() -> None:
    """The definition in `reference.py`, over its own cache, from the same keys and values."""
    case = CASES["windowed_with_sinks"]
    kv = reference.allocate(case.tables.numel(), BLOCK, 4, 16, torch.bfloat16, "cpu")
    for b, context in enumerate(case.contexts):
        position = torch.arange(context)
        reference.write(kv, case.keys[b], case.values[b], case.tables[b][position // BLOCK] * BLOCK + position % BLOCK)
    counts = torch.tensor([0, *case.queries]).cumsum(0)
    plan = reference.prepare(counts, torch.tensor(case.contexts), case.tables, BLOCK)
    got = reference.attend(case.q.double(), kv.double(), plan, 0.25, case.window, case.sinks)
    assert torch.allclose(got, case.dense(wide=True), atol=1e-9)


def test_negative_slots_are_not_written() -> None:
    kv = paged_attention.allocate(2, BLOCK, 1, 16, torch.bfloat16, "cpu")
    ones = torch.ones(2, 1, 16).bfloat16()
    paged_attention.write(kv, ones, ones, torch.tensor([-1, 3]))
    assert int((kv != 0).sum()) == 32


def test_a_slot_outside_the_cache_is_an_error() -> None:
    kv = paged_attention.allocate(2, BLOCK, 1, 16, torch.bfloat16, "cpu")
    ones = torch.ones(1, 1, 16).bfloat16()
    with pytest.raises(native.NativeError, match="outside the cache"):
        paged_attention.write(kv, ones, ones, torch.tensor([2 * BLOCK]))


def test_codes_need_the_native_layout() -> None:
    with pytest.raises(ConfigError, match="needs the native kernels"):
        paged_attention.allocate(2, 8, 1, 16, torch.int8, "cpu")


def growing(growth: float) -> Case:
    """Queries along one axis, and keys whose scores on it rise by `growth` a key, in two parts of a context."""
    case = Case([1100, 300], [40, 300], 4, 2, 64, None, None)
    case.q = case.q / 64
    case.q[..., 0] = 8.0
    for keys in case.keys:
        keys /= 64
        keys[..., 0] = (torch.arange(keys.shape[0], dtype=torch.float64)[:, None] * growth).bfloat16()
    return case


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("growth", [1.0, -1.0, 0.05], ids=["rising", "falling", "slowly"])
def test_scores_far_from_those_of_the_first_keys(isa: str, growth: float) -> None:
    """Weights relative to early scores would overflow, or vanish, in float32."""
    case = growing(growth)
    with native.forced_isa(isa):
        kv = case.cache()
        got = case.attend(kv)
        for b, (context, queries) in enumerate(zip(case.contexts, case.queries, strict=True)):
            starts = [0, *case.queries]
            last = Case([context], [1], 4, 2, 64, None, None)
            last.tables, last.q = case.tables[b : b + 1], case.q[starts[b] : starts[b] + queries][-1:]
            assert torch.equal(last.attend(kv)[0], got[starts[b] + queries - 1])
    truth = case.dense(wide=True)
    assert rms(got.double() - truth) <= ROUNDED_WEIGHTS * rms(case.dense(wide=False) - truth)
