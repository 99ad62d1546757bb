"""Prompts by warps with roles: the kernel's source, emulated in many orders, against the definition over blocks of NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch
from gluon_memory import Order, eager, shuffled
from test_triton_paged_attention import BF16_ROUNDING, Case, error
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ridgepoint.kernels import tuning
from ridgepoint.kernels.paged_attention import gluon_tiles
from ridgepoint.kernels.paged_attention.tunable import ROLES

FETCHER = 2
ORDERS: dict[str, Callable[[], Order]] = {
    "first_group_first": lambda: eager(0, 1, FETCHER),
    "second_group_first": lambda: eager(1, FETCHER, 0),
    "fetcher_first": lambda: eager(FETCHER, 1, 0, late=False),
    "fetcher_last": lambda: eager(1, 0, FETCHER, late=False),
    "at_random": lambda: shuffled(7),
}


class Emulated:
    """In the kernel's place: a launch is emulated on the tensors it is given."""

    def __init__(self, kernel: Any, order: Callable[[], Order]) -> None:
        self.kernel, self.order, self.grids = kernel, order, []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*args: Any, num_warps: int, maxnreg: int, **kwargs: Any) -> None:
            assert (num_warps, maxnreg) == (gluon_tiles.WARPS, gluon_tiles.REGISTERS)
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            given = {name: _emulated(value) for name, value in named.items()}
            given["out_ptr"][:] = np.nan
            gluon_emulator.run(gluon_tiles, self.kernel, grid[0], self.order, num_warps, **given)
            named["out_ptr"].copy_(torch.from_numpy(given["out_ptr"]).view(named["out_ptr"].shape))
            self.grids.append(grid)

        return launch


def _emulated(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        return gluon_emulator.Descriptor(_array(value.base), value.block_shape)
    return _array(value).reshape(-1) if isinstance(value, torch.Tensor) else value


def _array(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy().copy()


@pytest.fixture
def by_roles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    def attended(case: Case, order: Callable[[], Order] = ORDERS["first_group_first"]) -> torch.Tensor:
        emulated = Emulated(gluon_tiles.attend_tiles, order)
        monkeypatch.setattr(gluon_tiles, "attend_tiles", emulated)
        with tuning.pinned("paged_prompt", ROLES):
            out = case.got()
        assert len(emulated.grids) == 1
        return out

    return attended


def prompt(contexts: list[int], queries: list[int], **facts: Any) -> Case:
    return Case(contexts, queries, **({"heads": (8, 2), "width": 64, "dtype": torch.bfloat16} | facts))


CASES = {
    "several_items_a_program": lambda: prompt([300, 77, 140], [290, 40, 140]),
    "one_tile": lambda: prompt([40], [40], heads=(8, 1)),
    "exactly_whole_tiles": lambda: prompt([256], [200]),
    "wide_heads_and_an_odd_group": lambda: prompt([150, 20], [33, 20], heads=(6, 2), width=128),
    "decoding_beside_prompts": lambda: prompt([200, 60, 0], [1, 50, 0]),
    "window_and_sinks": lambda: prompt([420, 150], [200, 140], window=90, sinks=True),
    "window_of_one": lambda: prompt([140, 30], [140, 30], window=1, sinks=True),
    "large_pages": lambda: prompt([200, 129], [70, 129], page=64),
    "small_pages": lambda: prompt([61, 133], [61, 90], page=8, heads=(2, 2)),
    "many_heads_of_a_group": lambda: prompt([135], [9], heads=(64, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_attends(name: str, by_roles: Callable[..., torch.Tensor]) -> None:
    case = CASES[name]()
    assert error(by_roles(case), case.want()) < BF16_ROUNDING


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_of_its_partitions_matters(order: str, by_roles: Callable[..., torch.Tensor]) -> None:
    case = prompt([280, 5, 150], [270, 5, 60])
    assert error(by_roles(case, ORDERS[order]), case.want()) < BF16_ROUNDING
