"""Prompts by warps with roles: the kernel's source, emulated in many orders, against the definition over blocks of NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gluon_emulator
import numpy as np
import pytest
import torch
from gluon_memory import Order, eager, shuffled
from test_triton_paged_attention import BF16_ROUNDING, Case, error

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
        self.kernel, self.order = kernel, order
        self.launched: list[tuple[int, dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*args: Any, num_warps: int, maxnreg: int, **kwargs: Any) -> None:
            assert (num_warps, maxnreg) == (gluon_tiles.WARPS, gluon_tiles.REGISTERS)
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            given = {name: gluon_emulator.argument(value) for name, value in named.items()}
            given["out_ptr"][:] = np.nan
            gluon_emulator.run(gluon_tiles, self.kernel, grid[0], self.order, num_warps, **given)
            named["out_ptr"].copy_(torch.from_numpy(given["out_ptr"]).view(named["out_ptr"].shape))
            self.launched.append((grid[0], given))

        return launch


def by_roles(case: Case) -> tuple[torch.Tensor, tuple[int, dict[str, Any]]]:
    """The result, and the programs and arguments of the one launch."""
    emulated = Emulated(gluon_tiles.attend_tiles, ORDERS["first_group_first"])
    with pytest.MonkeyPatch.context() as patch, tuning.pinned("paged_prompt", ROLES):
        patch.setattr(gluon_tiles, "attend_tiles", emulated)
        out = case.got()
    (launched,) = emulated.launched
    return out, launched


def prompt(contexts: list[int], queries: list[int], **facts: Any) -> Case:
    return Case(contexts, queries, **({"heads": (8, 2), "width": 64, "dtype": torch.bfloat16} | facts))


CASES = {
    "several_items_a_program": lambda: prompt([300, 77, 140], [140, 40, 90]),
    "one_tile": lambda: prompt([40], [40], heads=(8, 1)),
    "exactly_whole_tiles": lambda: prompt([256], [200]),
    "wide_heads_and_an_odd_group": lambda: prompt([150, 20], [33, 20], heads=(6, 2), width=128),
    "decoding_beside_prompts": lambda: prompt([200, 60, 0], [1, 50, 0]),
    "window_and_sinks": lambda: prompt([420, 150], [60, 90], window=90, sinks=True),
    "window_of_one": lambda: prompt([140, 30], [40, 30], window=1, sinks=True),
    "large_pages": lambda: prompt([200, 129], [40, 60], page=64),
    "small_pages": lambda: prompt([61, 133], [61, 90], page=8, heads=(2, 2)),
    "many_heads_of_a_group": lambda: prompt([135], [9], heads=(64, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_attends(name: str) -> None:
    case = CASES[name]()
    assert error(by_roles(case)[0], case.want()) < BF16_ROUNDING


def test_blocks_that_no_box_holds_are_attended_to_by_the_usual_kernel() -> None:
    """A table may have been tuned over blocks of another size."""
    case = prompt([50], [40], page=48, heads=(4, 2))
    with tuning.pinned("paged_prompt", ROLES):
        assert error(case.got(), case.want()) < BF16_ROUNDING


NEEDED = ("mbarrier.wait", "mbarrier.arrive", "mbarrier.expect", "tma.async_copy_global_to_shared")
LINES = [line for name in NEEDED for line in gluon_emulator.statements(gluon_tiles, name)]


@pytest.fixture(scope="module")
def launched() -> tuple[int, dict[str, Any]]:
    """Eight items for three programs, of one tile and of two."""
    return by_roles(prompt([135], [125], heads=(8, 1)))[1]


def _is_right(module: Any, order: Callable[[], Order], programs: int, given: dict[str, Any]) -> bool:
    out = np.full_like(given["out_ptr"], np.nan)
    gluon_emulator.run(module, module.attend_tiles, programs, order, **(given | {"out_ptr": out}))
    return bool(np.array_equal(out, given["out_ptr"]))


def test_its_result_is_the_same_to_the_bit_in_many_orders(launched: tuple[int, dict[str, Any]]) -> None:
    for order in (*ORDERS.values(), *(lambda seed=seed: shuffled(seed) for seed in range(8))):
        assert _is_right(gluon_tiles, order, *launched)


@pytest.mark.parametrize("line", LINES)
def test_whatever_is_taken_out_is_missed(line: int, launched: tuple[int, dict[str, Any]]) -> None:
    """Each wait, arrival, copy and count of bytes is needed in some order; but whose turn it is only keeps a pace."""
    source = Path(gluon_tiles.__file__).read_text().splitlines()[line - 1]
    module = gluon_emulator.without(gluon_tiles, line)
    found = False
    for order in ORDERS.values():
        try:
            found |= not _is_right(module, order, *launched)
        except (AssertionError, TypeError):  # a product in flight is no number
            found = True
    assert found != (source.strip().startswith("mbarrier.wait") and "TURN" in source), source
