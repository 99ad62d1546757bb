"""Paged attention's Triton kernels against the definition, over caches whose unowned slots are NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.paged_attention import reference, triton_plan
from ridgepoint.kernels.paged_attention import triton as path
from ridgepoint.kernels.paged_attention.known import Known

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F32_ORDER = 2e-6  # relative error of float32 sums in another order
BF16_ROUNDING = 8e-3  # of weights, results and inputs rounded to bf16, two roundings deep


@dataclass
class Case:
    """Sequences of `contexts` tokens of which the last `queries` are this step's; `kept` is the type of the blocks."""

    contexts: list[int]
    queries: list[int]
    heads: tuple[int, int] = (4, 2)
    width: int = 16
    page: int = 16
    window: int | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    kept: torch.dtype | None = None
    tables: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        made = torch.Generator().manual_seed(sum(self.contexts) + self.width)
        blocks = max(-(-c // self.page) for c in self.contexts)
        num_heads, num_kv_heads = self.heads
        self.tables = torch.randperm(len(self.contexts) * blocks + 2, generator=made)[: len(self.contexts) * blocks]
        self.tables = self.tables.view(len(self.contexts), blocks)
        self.q = torch.randn(sum(self.queries), num_heads, self.width, generator=made).to(self.dtype)
        self.sinks_H = torch.randn(num_heads, generator=made) if self.sinks else None
        self.kv, self.plain = (
            op.allocate(self.tables.numel() + 2, self.page, num_kv_heads, self.width, dtype, "cpu")
            for op, dtype in ((path, self.kept or self.dtype), (reference, torch.float32))
        )
        self.kv.view(torch.uint8).fill_(0x7F if self.kv.dtype == torch.int8 else 0xFF)  # NaN in every float type
        for b, context in enumerate(self.contexts):
            position = torch.arange(context)
            slots = self.tables[b][position // self.page] * self.page + position % self.page
            k, v = (torch.randn(context, num_kv_heads, self.width, generator=made).to(self.dtype) for _ in "kv")
            path.write(self.kv, k, v, slots)
            reference.write(self.plain, k.float(), v.float(), slots)

    def inputs(self, chosen: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, starts, contexts and tables of some of the sequences."""
        chosen = list(range(len(self.contexts))) if chosen is None else chosen
        starts = [0, *torch.tensor(self.queries).cumsum(0).tolist()]
        q = torch.cat([self.q[starts[b] : starts[b + 1]] for b in chosen])
        counts = torch.tensor([0, *(self.queries[b] for b in chosen)]).cumsum(0)
        return q, counts, torch.tensor([self.contexts[b] for b in chosen]), self.tables[chosen]

    def got(self, chosen: list[int] | None = None) -> torch.Tensor:
        q, *sequences = self.inputs(chosen)
        plan = path.prepare(*sequences, self.page)
        return path.attend(q, self.kv, plan, self.width**-0.5, self.window, self.sinks_H)

    def want(self, kv: torch.Tensor | None = None) -> torch.Tensor:
        q, *sequences = self.inputs()
        plan = reference.prepare(*sequences, self.page)
        kv = self.plain if kv is None else kv
        return reference.attend(q.float(), kv, plan, self.width**-0.5, self.window, self.sinks_H)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.float() - want).norm() / want.norm())


CASES = {
    "decode": Case([1, 17, 33, 600], [1, 1, 1, 1]),
    "mixed": Case([5, 40, 70, 300], [5, 1, 37, 1], (8, 2), sinks=True),
    "few_queries_are_split_too": Case([300, 9, 541], [2, 4, 3], (8, 2), sinks=True),
    "windowed": Case([3, 90, 300, 33], [3, 20, 1, 1], (4, 4), window=5, sinks=True),
    "window_over_many_tiles": Case([400, 150, 390], [1, 140, 4], (6, 1), window=130),
    "odd_width_and_group": Case([70, 45], [1, 40], (7, 1), width=24, page=24),
    "one_head_each": Case([31, 32, 33], [31, 1, 2], (3, 3), page=64),
    "no_query": Case([20, 30, 40], [0, 30, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(name: str) -> None:
    case = CASES[name]
    assert error(case.got(), case.want()) < F32_ORDER


@pytest.mark.parametrize("heads", [(8, 2), (5, 1)])
def test_agrees_in_bf16(heads: tuple[int, int]) -> None:
    case = Case([260, 33, 1], [1, 33, 1], heads, width=64, dtype=torch.bfloat16, sinks=True)
    got = case.got()
    assert got.dtype == torch.bfloat16 and error(got, case.want()) < BF16_ROUNDING


@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_one_byte_blocks_hold_a_scale_per_token_and_head(kept: torch.dtype) -> None:
    """The blocks are read by hand here: what attention computes is what they say, and they say what was written."""
    case = Case([300, 33, 40], [1, 33, 1], (4, 2), width=16, kept=kept, window=70, sinks=True)
    num_blocks, _, heads, _ = case.kv.shape
    rows = case.kv.view(torch.uint8)
    channels = rows[..., : 16 * 16].contiguous().view(kept).float().view(num_blocks, 2, heads, 16, 16)
    scales = rows[..., 16 * 16 :].contiguous().view(torch.float32).view(num_blocks, 2, heads, 16)
    by_hand = channels * scales[..., None]
    owned = case.plain.abs().amax(-1) > 0
    largest = case.plain.abs().amax(-1, keepdim=True)
    bound = largest / 254 if kept == torch.int8 else case.plain.abs() / 16 + largest / 448 * 2**-10
    assert ((by_hand - case.plain).abs() <= bound + 1e-6)[owned].all()
    assert error(case.got(), case.want(by_hand)) < F32_ORDER


def test_a_token_is_the_same_alone_and_in_any_company() -> None:
    case = Case([600, 33, 70, 300], [1, 33, 1, 3], sinks=True)
    together, starts = case.got(), torch.tensor([0, *case.queries]).cumsum(0)
    for b in range(4):
        assert torch.equal(case.got([b]), together[starts[b] : starts[b + 1]])
    assert torch.equal(case.got([3, 0]), torch.cat((together[starts[3] : starts[4]], together[:1])))


def test_a_decoding_step_has_no_list_of_tiles() -> None:
    _, *sequences = CASES["decode"].inputs()
    plan = path.prepare(*sequences, 16)
    cut = triton_plan.Cut(None, 1, 16)
    assert len(plan._list(cut, 4).long_items) == 0 and len(plan._list(cut, 5).long_items) == 4


def test_rows_that_pad_a_recorded_step_become_zero() -> None:
    """A step recorded for 6 sequences replays 2: the others have no queries, and their rows belong to nobody."""
    case = CASES["decode"]
    q, starts, contexts, tables = case.inputs([1, 3])
    q = torch.cat((q, torch.full((4, *q.shape[1:]), float("nan"))))
    starts, contexts = (
        torch.cat((starts, starts[-1:].expand(4))),
        torch.cat((contexts, torch.zeros(4, dtype=torch.int64))),
    )
    tables = torch.cat((tables, torch.zeros(4, tables.shape[1], dtype=torch.int64)))
    got = path.attend(q, case.kv, path.prepare(starts, contexts, tables, case.page), case.width**-0.5, None, None)
    assert torch.equal(got[:2], case.got([1, 3])) and not got[2:].any()


@pytest.mark.parametrize("fewest", [8, 9])
def test_prompts_alone_launch_nothing_for_short_sequences(fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads share keys and a split has 16 rows: up to 8 queries are short."""
    case = Case([70, 50, 300], [40, fewest, 11])
    q, *sequences = case.inputs()
    launched: list[str] = []
    for name in ("attend_splits", "combine_splits", "attend_tiles"):
        monkeypatch.setattr(path.kernels, name, _noting(launched, name, getattr(path.kernels, name)))
    plan = path.prepare(*sequences, case.page, known=Known(least_queries=fewest, most_cached=289))
    got = path.attend(q, case.kv, plan, case.width**-0.5, None, None)
    assert launched == ["attend_tiles"] + (["attend_splits", "combine_splits"] if fewest == 8 else [])
    assert torch.equal(got, case.got())


def _noting(launched: list[str], name: str, kernel: Any) -> Any:
    class Noting:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launched.append(name)
            return kernel[grid]

    return Noting()


def test_a_plan_is_listed_once_for_layers_that_cut_alike() -> None:
    case = CASES["mixed"]
    q, *sequences = case.inputs()
    plan = path.prepare(*sequences, case.page)
    for window in (None, 5, None):
        path.attend(q, case.kv, plan, 1.0, window, None)
    assert len(plan._work) == 2


def test_work_lists_name_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More sequences than are looked at together, and splits that have grown."""
    monkeypatch.setattr(triton_plan, "SEQS", 8)
    g = torch.Generator().manual_seed(0)
    queries = torch.randint(0, 4, (19,), generator=g) ** 3
    contexts = queries + torch.randint(0, 20_000, queries.shape, generator=g)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), queries.cumsum(0)))
    tables = torch.zeros(len(queries), 1300, dtype=torch.int64)
    plan = path.prepare(starts, contexts, tables, 16)
    work = plan.work(triton_plan.Cut(None, 2, 10), int(starts[-1]))
    short, long = [], []
    for b, (count, context) in enumerate(zip(queries.tolist(), contexts.tolist(), strict=True)):
        length = max(256, math.ceil(math.ceil(context / 32) / 128) * 128)
        splits = -(-context // length) if 0 < count <= 2 else 0
        assert int(work.first_item_B[b]) == len(short)
        short += [[b, s] for s in range(splits)]
        long += [[b, t] for t in reversed(range(-(-count // 10) if count > 2 else 0))]
    assert work.counts.tolist() == [len(short), len(long)]
    assert work.short_items[: len(short)].tolist() == short and work.long_items[: len(long)].tolist() == long


def test_negative_slots_are_not_written() -> None:
    kv = path.allocate(2, 16, 1, 16, torch.bfloat16, "cpu")
    ones = torch.ones(2, 1, 16).bfloat16()
    path.write(kv, ones, ones, torch.tensor([-1, 3]))
    assert int((kv != 0).sum()) == 32


def test_writes_read_slices_of_a_projection() -> None:
    qkv = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    k, v = qkv[:, 10:42].unflatten(1, (2, 16)), qkv[:, 50:82].unflatten(1, (2, 16))
    slots = torch.tensor([17, 0, 30])
    kv, plain = (op.allocate(2, 16, 2, 16, torch.float32, "cpu") for op in (path, reference))
    path.write(kv, k, v, slots)
    reference.write(plain, k, v, slots)
    assert torch.equal(kv, plain)


def test_types_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kept as torch\.int16; allowed: torch\.bfloat16"):
        path.allocate(1, 16, 1, 16, torch.int16, "cpu")
    with pytest.raises(ConfigError, match="unaligned"):
        path.allocate(1, 1, 1, 3, torch.int8, "cpu")


@pytest.mark.parametrize("contexts", [[3000, 900, 5000], [4096] * 5, [17], [9000, 1, 1, 1]])
def test_parts_share_a_step_so_that_it_ends_soonest(contexts: list[int]) -> None:
    """The chosen length against every length there is: none of them has the same parts done earlier by more than the step
    between two that are tried."""
    parts, num = 6, len(contexts)
    tables = torch.zeros(num, 600, dtype=torch.int64)
    work = path.prepare(torch.arange(num + 1), torch.tensor(contexts), tables, 16).work(
        triton_plan.Cut(None, 1, 8, parts), num
    )

    def rounds(length: int) -> int:
        return -(-sum(-(-keys // length) for keys in contexts) // parts) * (length + triton_plan.SPLIT_COST)

    length = int(work.split_tokens_B.max())
    possible = range(triton_plan.SPLIT_TOKENS, max(contexts) + 2 * triton_plan.SPLIT_STEP, triton_plan.SPLIT_STEP)
    assert rounds(length) <= 1.25 * min(rounds(each) for each in possible)
    items = [[b, s] for b, keys in enumerate(contexts) for s in range(-(-keys // int(work.split_tokens_B[b])))]
    assert work.short_items[: int(work.counts[0])].tolist() == items
