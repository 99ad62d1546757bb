# mypy: disallow-untyped-defs=False
"""The emulator of Gluon kernels lets right ones pass in every order, and finds what is missing from one."""

from __future__ import annotations

import sys
from typing import Any

import gluon_emulator
import numpy as np
import pytest
from gluon_memory import eager, shuffled
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

HERE = sys.modules[__name__]
N: gl.constexpr = gl.constexpr(16)
ORDERS = {
    "the first first": lambda: eager(0, 1, 2),
    "the last first": lambda: eager(2, 1, 0),
    "workers first, copies at once": lambda: eager(1, 2, 0, late=False),
    "shuffled": lambda: shuffled(5),
}


@gluon.jit
def add_products(x_ptr, y_ptr, out_ptr, num: gl.constexpr):
    """out = sum of x_i y_i: one partition copies, another multiplies, a third, every other pair of matrices in its room, doubles x."""
    rooms = gl.allocate_shared_memory(gl.bfloat16, [4, N, N], None)
    came = gl.allocate_shared_memory(gl.int64, [2, 1], None)
    doubled = gl.allocate_shared_memory(gl.int64, [2, 1], None)
    freed = gl.allocate_shared_memory(gl.int64, [2, 1], None)
    for i in gl.static_range(2):
        mbarrier.init(came.index(i), count=128)
        mbarrier.init(doubled.index(i), count=1)
        mbarrier.init(freed.index(i), count=1)
    gl.warp_specialize(
        [
            (_multiply, (rooms, doubled, freed, out_ptr, num)),
            (_double, (rooms, came, doubled, num)),
            (_copy, (rooms, came, freed, x_ptr, y_ptr, num)),
        ],
        [4, 4],
        [24, 24],
    )


@gluon.jit
def _place():
    return gl.arange(0, N)[:, None] * N + gl.arange(0, N)[None, :]


@gluon.jit
def _copy(rooms, came, freed, x_ptr, y_ptr, num: gl.constexpr):
    for i in range(num):
        slot, turn = i % 2, i // 2
        mbarrier.wait(freed.index(slot), turn % 2 ^ 1)
        async_copy.async_copy_global_to_shared(rooms.index(slot), x_ptr + i * N * N + _place())
        for part in gl.static_range(2):
            room = rooms.index(2 + slot).slice(part * N // 2, N // 2, 1)
            half = gl.arange(0, N)[:, None] * N + (part * N // 2 + gl.arange(0, N // 2))[None, :]
            async_copy.async_copy_global_to_shared(room, y_ptr + i * N * N + half)
        async_copy.mbarrier_arrive(came.index(slot), increment_count=False)


@gluon.jit
def _double(rooms, came, doubled, num: gl.constexpr):
    for i in range(num):
        slot, turn = i % 2, i // 2
        mbarrier.wait(came.index(slot), turn % 2)
        rooms.index(slot).store(rooms.index(slot).load(None) * 2.0)
        fence_async_shared()
        mbarrier.arrive(doubled.index(slot))


@gluon.jit
def _multiply(rooms, doubled, freed, out_ptr, num: gl.constexpr):
    acc = gl.full([N, N], 0.0, gl.float32)
    for i in range(num):
        slot, turn = i % 2, i // 2
        mbarrier.wait(doubled.index(slot), turn % 2)
        acc = warpgroup_mma(rooms.index(slot), rooms.index(2 + slot), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(freed.index(slot))
    gl.store(out_ptr + _place(), acc)


@gluon.jit
def add_described(x, y, out_ptr, num: gl.constexpr):
    """out = sum of x_i y_i, by the copy engine, one product behind."""
    rooms = gl.allocate_shared_memory(gl.bfloat16, [4, N, N], None)
    came = gl.allocate_shared_memory(gl.int64, [2, 1], None)
    freed = gl.allocate_shared_memory(gl.int64, [2, 1], None)
    for i in gl.static_range(2):
        mbarrier.init(came.index(i), count=1)
        mbarrier.init(freed.index(i), count=1)
    gl.warp_specialize(
        [(_multiply_behind, (rooms, came, freed, out_ptr, num)), (_describe, (rooms, came, freed, x, y, num))],
        [1],
        [24],
    )


@gluon.jit
def _describe(rooms, came, freed, x, y, num: gl.constexpr):
    for i in range(num):
        slot, turn = i % 2, i // 2
        mbarrier.wait(freed.index(slot), turn % 2 ^ 1)
        mbarrier.expect(came.index(slot), 4 * N * N)
        tma.async_copy_global_to_shared(x, [i * N, 0], came.index(slot), rooms.index(slot))
        tma.async_copy_global_to_shared(y, [i * N, 0], came.index(slot), rooms.index(2 + slot))


@gluon.jit
def _multiply_behind(rooms, came, freed, out_ptr, num: gl.constexpr):
    acc = gl.full([N, N], 0.0, gl.float32)
    for i in range(num):
        slot, turn = i % 2, i // 2
        mbarrier.wait(came.index(slot), turn % 2)
        acc = warpgroup_mma(rooms.index(slot), rooms.index(2 + slot), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        mbarrier.arrive(freed.index(1 - slot), pred=i > 0)
    acc = warpgroup_mma_wait(0, deps=[acc])
    gl.store(out_ptr + _place(), acc)


def matrices(num: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(num).integers(-3, 4, (2, num, 16, 16)).astype(np.float32)
    return x, y


def added(module: Any, order: Any, num: int = 5) -> bool:
    """Whether the sum is right; raises where something is wrong on the way."""
    x, y = matrices(num)
    out = np.full(256, np.nan, np.float32)
    gluon_emulator.run(
        module, module.add_products, 1, order=order, x_ptr=x.reshape(-1), y_ptr=y.reshape(-1), out_ptr=out, num=num
    )
    return bool((out.reshape(16, 16) == 2 * (x @ y).sum(0)).all())


def described(module: Any, order: Any, num: int = 5) -> bool:
    x, y = matrices(num)
    out = np.full(256, np.nan, np.float32)
    given = {name: gluon_emulator.Descriptor(a.reshape(-1, 16), [16, 16]) for name, a in (("x", x), ("y", y))}
    gluon_emulator.run(module, module.add_described, 1, order=order, **given, out_ptr=out, num=num)
    return bool((out.reshape(16, 16) == (x @ y).sum(0)).all())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [added, described])
def test_what_is_right_passes_in_every_order(kind: Any, order: str) -> None:
    for num in (1, 2, 5):
        assert kind(HERE, ORDERS[order], num)


WAITED_FOR = ("mbarrier.wait", "mbarrier.arrive", "mbarrier.expect", "fence_async_shared", "async_copy.mbarrier_arrive")


LINES = [line for name in WAITED_FOR for line in gluon_emulator.statements(HERE, name)]


@pytest.mark.parametrize("line", [line for line in LINES if line < matrices.__code__.co_firstlineno])
def test_whatever_is_taken_out_is_missed(line: int) -> None:
    """Of both kernels: each wait, arrival and fence is needed by one of them in every order tried."""
    module = gluon_emulator.without(HERE, line)
    failed = []
    for kind in (added, described):
        for order in ORDERS.values():
            try:
                failed.append(not kind(module, order))
            except AssertionError:
                failed.append(True)
    assert failed == [True] * 4 + [False] * 4 or failed == [False] * 4 + [True] * 4


@gluon.jit
def add_in_flight(x_ptr, out_ptr):
    room = gl.allocate_shared_memory(gl.bfloat16, [N, N], None)
    room.store(gl.load(x_ptr + _place()))
    fence_async_shared()
    gl.thread_barrier()
    product = warpgroup_mma(room, room, gl.full([N, N], 0.0, gl.float32), is_async=True)
    first = warpgroup_mma_wait(1, deps=[product])
    gl.store(out_ptr + _place(), first + 1.0)


def test_a_product_in_flight_is_no_number() -> None:
    with pytest.raises(TypeError):
        gluon_emulator.run(HERE, add_in_flight, 1, x_ptr=np.ones(256, np.float32), out_ptr=np.zeros(256, np.float32))


@gluon.jit
def arrive_twice(count: gl.constexpr):
    barrier = gl.allocate_shared_memory(gl.int64, [1], None)
    mbarrier.init(barrier, count=count)
    mbarrier.arrive(barrier, count=2)
    mbarrier.wait(barrier, 0)
    mbarrier.wait(barrier, 0)  # passed as long as the next phase is open
    mbarrier.wait(barrier, 1)


def test_barriers_count_arrivals_and_turn_phases() -> None:
    with pytest.raises(AssertionError, match="2 arrive where 1 are missing"):
        gluon_emulator.run(HERE, arrive_twice, 1, count=1)
    with pytest.raises(AssertionError, match="nobody can go on: partition 0 for phase 0"):
        gluon_emulator.run(HERE, arrive_twice, 1, count=3)
    with pytest.raises(AssertionError, match="nobody can go on: partition 0 for phase 1"):
        gluon_emulator.run(HERE, arrive_twice, 1, count=2)
