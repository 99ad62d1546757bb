"""Products of experts by warps with roles: the kernel's source, emulated in many orders, against the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch
from gluon_memory import Order, eager, shuffled
from products import BF16, error, poisoned_empty, randn, surrounded
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

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
        self.kernel, self.order, self.launches = kernel, order, 0
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(num_warps: int, maxnreg: int, **named: Any) -> None:
            assert (num_warps, maxnreg) == (gluon_blocks.WARPS, gluon_blocks.REGISTERS)
            given = {name: _emulated(value) for name, value in named.items()}
            gluon_emulator.run(gluon_blocks, self.kernel, grid[0], self.order, num_warps, **given)
            named["out"].copy_(torch.from_numpy(given["out"]).view(named["out"].shape))
            self.launches += 1

        return launch


def _emulated(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        return gluon_emulator.Descriptor(_array(value.base), value.block_shape)
    return _array(value).reshape(-1) if isinstance(value, torch.Tensor) else value


def _array(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy().copy()


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned_empty(monkeypatch.setattr)


def ids_of(counts: list[int], top_k: int) -> torch.Tensor:
    """Experts of tokens such that expert e has `counts[e]` pairs, shuffled; the K of a token may be equal, which no product minds."""
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(5))].view(-1, top_k)


def disagreement(
    counts: list[int],
    d: int,
    f: int,
    activation: Activation,
    order: Callable[[], Order],
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    ids = ids_of(counts, 2)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(6))
    num = len(counts)
    gate_up, down = randn(num, 2 * f, d, scale=d**-0.5), randn(num, d, f, seed=1, scale=f**-0.5)
    biases = (randn(num, 2 * f, seed=2), randn(num, d, seed=3)) if activation is CLAMPED else (None, None)
    x = surrounded(randn(len(ids), d, seed=9))
    emulated = Emulated(gluon_blocks.block_tiles, order)
    monkeypatch.setattr(gluon_blocks, "block_tiles", emulated)
    with tuning.pinned("experts", BY_ROLES):
        got = fast.moe_experts(x, weights, ids, gate_up, down, activation, *biases)
    assert emulated.launches == 2
    return error(got, reference.moe_experts(x.double(), weights, ids, gate_up, down, activation, *biases))


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
def test_it_agrees_with_the_definition(
    counts: list[int], d: int, f: int, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disagreement(counts, d, f, activation, ORDERS["in_turn"], monkeypatch) <= BF16


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_of_its_partitions_matters(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement([70, 1, 150, 33], 128, 64, SwiGlu(), ORDERS[order], monkeypatch) <= BF16


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
