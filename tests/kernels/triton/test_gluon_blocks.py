"""Products of experts by warps with roles: the kernel's source, emulated in many orders, against the definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch
from gluon_memory import Order, eager, shuffled
from products import BF16, error, poisoned_empty, randn, surrounded

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu, SwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuning
from ridgepoint.kernels.gemm import candidates, gluon_blocks
from ridgepoint.kernels.moe_experts import reference
from ridgepoint.kernels.moe_experts import triton as fast
from ridgepoint.kernels.moe_experts.groups import group_rows
from ridgepoint.kernels.moe_experts.tunable import BY_ROLES
from ridgepoint.kernels.tuning import ExpertTiles

CLAMPED = ClampedSwiGlu(alpha=1.702, limit=0.7)
FETCHER = 3
ORDERS: dict[str, Callable[[], Order]] = {
    "in_turn": lambda: eager(0, 1, 2, FETCHER),
    "last_group_first": lambda: eager(2, FETCHER, 1, 0),
    "fetcher_first": lambda: eager(FETCHER, 1, 0, late=False),
    "at_random": lambda: shuffled(11),
}


class Emulated:
    """In the kernel's place: a launch is emulated on the tensors it is given."""

    def __init__(self, kernel: Any, order: Callable[[], Order]) -> None:
        self.kernel, self.order, self.arg_names = kernel, order, kernel.arg_names
        self.launched: list[tuple[int, dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(num_warps: int, maxnreg: int, **named: Any) -> None:
            assert (num_warps, maxnreg) == (gluon_blocks.WARPS, gluon_blocks.REGISTERS)
            given = {name: gluon_emulator.argument(value) for name, value in named.items()}
            given["out"][:] = np.nan
            gluon_emulator.run(gluon_blocks, self.kernel, grid[0], self.order, num_warps, **given)
            named["out"].copy_(torch.from_numpy(given["out"]).view(named["out"].shape))
            self.launched.append((grid[0], given))

        return launch


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned_empty(monkeypatch.setattr)


def ids_of(counts: list[int], top_k: int) -> torch.Tensor:
    """Experts of tokens such that expert e has `counts[e]` pairs, shuffled; the K of a token may be equal, which no product minds."""
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(5))].view(-1, top_k)


def by_roles(
    counts: list[int], d: int, f: int, activation: Activation
) -> tuple[float, list[tuple[int, dict[str, Any]]]]:
    """How far the result is from the definition, and the programs and arguments of both launches."""
    ids = ids_of(counts, 2)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(6))
    num = len(counts)
    gate_up, down = randn(num, 2 * f, d, scale=d**-0.5), randn(num, d, f, seed=1, scale=f**-0.5)
    biases = (randn(num, 2 * f, seed=2), randn(num, d, seed=3)) if activation is CLAMPED else (None, None)
    x = surrounded(randn(len(ids), d, seed=9))
    emulated = Emulated(gluon_blocks.block_tiles, ORDERS["in_turn"])
    with pytest.MonkeyPatch.context() as patch, tuning.pinned("experts", BY_ROLES):
        patch.setattr(gluon_blocks, "block_tiles", emulated)
        got = fast.moe_experts(x, weights, ids, gate_up, down, activation, *biases)
    want = reference.moe_experts(x.double(), weights, ids, gate_up, down, activation, *biases)
    return error(got, want), emulated.launched


@pytest.mark.parametrize(
    ("counts", "d", "f", "activation"),
    [
        ([70, 3, 0, 129], 128, 128, SwiGlu()),  # two groups, one, none, three
        ([64, 128, 192], 64, 192, SwiGlu()),  # whole groups; features that are no whole tile
        ([300, 193, 1], 192, 64, CLAMPED),  # several blocks of an expert, the last of one row
        ([2], 64, 64, SwiGlu()),
    ],
    ids=str,
)
def test_it_agrees_with_the_definition(counts: list[int], d: int, f: int, activation: Activation) -> None:
    wrong, launched = by_roles(counts, d, f, activation)
    assert wrong <= BF16 and len(launched) == 2


@pytest.fixture(scope="module")
def launched() -> list[tuple[int, dict[str, Any]]]:
    """Gathered rows and rows in order, a few tiles a program."""
    return by_roles([70, 1, 150, 33], 256, 128, SwiGlu())[1]


def _is_right(module: Any, order: Callable[[], Order], programs: int, given: dict[str, Any]) -> bool:
    out = np.full_like(given["out"], np.nan)
    gluon_emulator.run(module, module.block_tiles, programs, order, **(given | {"out": out}))
    return bool(np.array_equal(out, given["out"], equal_nan=True))


def test_its_result_is_the_same_to_the_bit_in_many_orders(launched: list[tuple[int, dict[str, Any]]]) -> None:
    for order in (*ORDERS.values(), *(lambda seed=seed: shuffled(seed) for seed in range(6))):
        assert all(_is_right(gluon_blocks, order, *launch) for launch in launched)


NEEDED = (
    "mbarrier.wait", "mbarrier.arrive", "mbarrier.expect", "tma.async_copy_global_to_shared", "async_copy.mbarrier_arrive",
    "fence_async_shared", "_gather",
)  # fmt: skip
LINES = [line for name in NEEDED for line in gluon_emulator.statements(gluon_blocks, name)]


@pytest.mark.parametrize("line", LINES)
def test_whatever_is_taken_out_is_missed(line: int, launched: list[tuple[int, dict[str, Any]]]) -> None:
    """Each wait, arrival, copy, fence and count of bytes is needed in some order, by one of the products."""
    module = gluon_emulator.without(gluon_blocks, line)
    found = False
    for order in ORDERS.values():
        for launch in launched:
            try:
                found |= not _is_right(module, order, *launch)
            except AssertionError:
                found = True
    assert found, Path(gluon_blocks.__file__).read_text().splitlines()[line - 1]


@pytest.mark.parametrize("counts", [[0, 65, 192, 193, 400, 64], [7], [500, 0, 900, 130, 2, 190]], ids=str)
def test_blocks_hold_all_that_is_left_of_an_expert(counts: list[int]) -> None:
    groups = group_rows(ids_of(counts, 1), len(counts), 192, 64, lower=True)
    (blocks,) = groups.tables
    got = [tuple(int(x) for x in row) for row in blocks.table[:, : int(blocks.count)].T]
    first, want = 0, []
    for expert, count in enumerate(counts):
        want += [(expert, first + done, min(192, count - done)) for done in range(0, count, 192)]
        first += -(-count // 64) * 64
    assert got == want and len(want) <= blocks.capacity and first <= groups.capacity_rows


def test_configurations_with_roles_have_blocks_of_three_units() -> None:
    with pytest.raises(ConfigError, match="three units"):
        ExpertTiles(block_m=128, unit=64, first=candidates.BY_ROLES, second=candidates.BY_ROLES)
