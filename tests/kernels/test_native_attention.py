"""Native paged attention against its definition, over caches whose unused slots are NaN."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from native_support import ISAS, needs_native, rms, same_bits_whoever_computes

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

    def __post_init__(self) -> None:
        made = torch.Generator().manual_seed(sum(self.contexts) + self.width)
        blocks = max(-(-c // BLOCK) for c in self.contexts)
        self.tables = torch.randperm(len(self.contexts) * blocks, generator=made).view(len(self.contexts), blocks)
        self.keys, self.values = (
            [torch.randn(c, self.kv_heads, self.width, generator=made).bfloat16() for c in self.contexts] for _ in "kv"
        )
        self.q = torch.randn(sum(self.queries), self.heads, self.width, generator=made).bfloat16()

    def cache(self) -> torch.Tensor:
        kv = paged_attention.allocate(self.tables.numel(), BLOCK, self.kv_heads, self.width, torch.bfloat16, "cpu")
        kv.fill_(float("nan"))
        for b, context in enumerate(self.contexts):
            position = torch.arange(context)
            slots = self.tables[b][position // BLOCK] * BLOCK + position % BLOCK
            paged_attention.write(kv, self.keys[b], self.values[b], slots)
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

    def dense(self, wide: bool) -> torch.Tensor:
        """The definition over plain tensors; not `wide`: weights and result rounded to bf16 on the way."""
        out, start = [], 0
        for b, (context, queries) in enumerate(zip(self.contexts, self.queries, strict=True)):
            group = self.heads // self.kv_heads
            k, v = (t[b].double().repeat_interleave(group, dim=1) for t in (self.keys, self.values))
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


@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_the_query_alone(isa: str) -> None:
    case = CASES["grouped"]
    with native.forced_isa(isa):
        kv = case.cache()
        whole = same_bits_whoever_computes(lambda: case.attend(kv))
        starts = torch.tensor([0, *case.queries]).cumsum(0)
        for b in range(4):
            assert torch.equal(case.attend(kv, [b]), whole[starts[b] : starts[b + 1]])
        # The last query of a long segment alone: as a decoding step.
        alone = Case(case.contexts, [1, 1, 1, 1], 8, 2, 64, None, None)
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
