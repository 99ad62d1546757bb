"""Runs a Gluon kernel's own source over numpy, program by program, and refuses what its shared memory would not survive.

Gluon has no interpreter. Here a kernel's partitions take turns in an order that the test chooses, copies land when that order says
so (until then their room holds NaN), products are read when they are waited for, and `gluon_memory` knows who may read or write
a room. What is read too early, written too early, not fenced, or waited for in vain raises. Known to the language below: blocks and
their arithmetic, global loads and stores, shared memory, cp.async with groups or mbarriers, copies of tensor descriptors,
asynchronous products, and `warp_specialize`. Layouts are not looked at.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from gluon_memory import Barrier, Copy, Memory, Order, Product, Room, View, eager
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import constexpr

DTYPES = {"int32": np.int32, "int64": np.int64, "float32": np.float32, "bfloat16": "bfloat16"}


# What assembly means.
INSTRUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ex2.approx.ftz.f32 $0, $1;": lambda x: tensor(np.exp2(x)),
    "rcp.approx.ftz.f32 $0, $1;": lambda x: tensor(1 / x),
}


class Tensor(np.ndarray):
    """Of any shape; bfloat16 numbers are kept as float32."""

    def to(self, dtype: str) -> Tensor:
        if dtype == "bfloat16":
            return tensor(torch.from_numpy(np.array(self, np.float32)).bfloat16().float().numpy())
        return tensor(np.asarray(self).astype(DTYPES[dtype]))


def tensor(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


class Pointer:
    """Into a flat array."""

    def __init__(self, memory: np.ndarray, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, by: Any) -> Pointer:
        return Pointer(self.memory, self.offset + np.asarray(by))

    def __getitem__(self, axes: Any) -> Pointer:
        return Pointer(self.memory, np.asarray(self.offset)[axes])

    def load(self, mask: Any = None, other: Any = None) -> Tensor:
        if mask is None:
            return tensor(self.memory[self.offset])
        offset, mask = np.broadcast_arrays(self.offset, np.asarray(mask, bool))
        values = np.full(offset.shape, np.nan if other is None else other, self.memory.dtype)
        values[mask] = self.memory[offset[mask]]
        return tensor(values)

    def store(self, values: Any, mask: Any = None) -> None:
        if mask is None:
            self.memory[self.offset] = values
            return
        offset, mask, values = np.broadcast_arrays(self.offset, np.asarray(mask, bool), values)
        self.memory[offset[mask]] = values[mask]


class Descriptor:
    """Of an array of any rank, for the copy engine: what lies outside reads as zeros and is not written."""

    def __init__(self, array: np.ndarray, block_shape: list[int], dtype: str = "bfloat16") -> None:
        self.array, self.block_shape, self.dtype = array, block_shape, dtype

    def place(self, coord: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """In the array and in the block."""
        firsts = [int(first) for first in coord]
        spans = [
            (max(first, 0), min(first + n, size))
            for first, n, size in zip(firsts, self.block_shape, self.array.shape, strict=True)
        ]
        inside = tuple(slice(low, max(low, high)) for low, high in spans)
        return inside, tuple(
            slice(low - first, max(low, high) - first) for (low, high), first in zip(spans, firsts, strict=True)
        )


class Accumulator:
    """Of a product that has been started: no number until it is waited for."""

    def __init__(self, values: np.ndarray, product: Product | None = None) -> None:
        self.values, self.product = values, product


class Emulator:
    """The language, for one program."""

    def __init__(self, order: Order, warps: int) -> None:
        self.memory = Memory(order, warps, tensor)

    # ---- copies

    def copy(self, room: Room, pointer: Pointer, mask: Any = None) -> None:
        me = self.memory.now
        values = pointer.load(mask, None if mask is None else 0)
        assert values.shape == room.shape, f"{values.shape} into a room of {room.shape}"
        copy = Copy(room, np.asarray(values, room.values.dtype), me.other("copy", engine=False))
        me.write(room, copy.act)
        self.memory.launch(copy)
        me.copies.append(copy)
        me.groups[-1].append(copy)
        self.memory.pause()

    def commit_group(self) -> None:
        self.memory.now.groups.append([])

    def wait_group(self, outstanding: int = 0) -> None:
        me = self.memory.now
        open_group = me.groups.pop()
        waited = me.groups[: len(me.groups) - outstanding]
        me.groups = [*me.groups[len(waited) :], open_group]
        copies = [copy for group in waited for copy in group]
        self.memory.pause(lambda: all(copy.landed for copy in copies), "its copies")
        me.own.update({copy.act.who: 1 for copy in copies})

    def arrive_when_copied(self, room: Room, increment_count: bool = True) -> None:
        me, barrier, count = self.memory.now, _barrier(room), 32 * self.memory.now.warps
        if increment_count:
            barrier.missing += count
        self.memory.expecting.append((barrier, list(me.copies), count))
        self.memory.settle()
        self.memory.pause()

    def engine_load(
        self, descriptor: Descriptor, coord: list[int], barrier: Room, room: Room, pred: Any = True
    ) -> None:
        if not pred:
            return
        me = self.memory.now
        array, block = descriptor.place(coord)
        values = np.zeros(descriptor.block_shape, room.values.dtype)
        values[block] = descriptor.array[array]
        copy = Copy(room, values.reshape(room.shape), me.other("engine", engine=True), _barrier(barrier))
        me.meet()  # one thread asks, when all have come
        me.write(room, copy.act)
        self.memory.launch(copy)
        self.memory.pause()

    def engine_store(self, descriptor: Descriptor, coord: list[int], room: Room) -> None:
        me = self.memory.now
        me.meet()
        act = me.other("engine", engine=True)
        me.read(room, act)
        array, block = descriptor.place(coord)
        descriptor.array[array] = room.values.reshape(descriptor.block_shape)[block]
        me.stores.append(act)

    def wait_stores(self, pendings: int = 0) -> None:
        me = self.memory.now
        while len(me.stores) > pendings:
            me.own[me.stores.pop(0).who] = 1

    # ---- barriers

    def init(self, room: Room, count: int) -> None:
        room.barrier = Barrier(count)

    def arrive(self, room: Room, *, count: int = 1, pred: Any = True) -> None:
        self.memory.now.meet()  # one thread arrives, when all have come
        if pred:
            _barrier(room).arrive(count, self.memory.now.known, self.memory.now.fenced)
        self.memory.pause()

    def expect(self, room: Room, nbytes: int, pred: Any = True) -> None:
        self.memory.now.meet()
        if pred:
            barrier = _barrier(room)
            barrier.bytes += nbytes
            barrier.arrive(1, self.memory.now.known, self.memory.now.fenced)

    def wait(self, room: Room, phase: int, pred: Any = True, deps: Any = ()) -> None:
        if not pred:
            return
        barrier, me = _barrier(room), self.memory.now
        self.memory.pause(lambda: barrier.passed(phase), f"phase {int(phase)} of a barrier")
        me.known.join(barrier.known[0])
        me.fenced.join(barrier.known[1])

    def fence(self, cluster: bool = False) -> None:
        self.memory.now.fence()

    def thread_barrier(self) -> None:
        self.memory.now.meet()

    # ---- products

    def multiply(self, a: Any, b: Any, acc: Any, *, use_acc: Any = True, is_async: bool = False, **how: Any) -> Any:
        views = [x if isinstance(x, View) else View(x, lambda x: x) for x in (a, b) if isinstance(x, Room | View)]
        product = self.memory.now.multiply([room for view in views for room in view.rooms])
        left, right = (np.asarray(x.values if isinstance(x, Room | View) else x) for x in (a, b))
        before = acc.values if isinstance(acc, Accumulator) else np.asarray(acc)
        values = left.astype(np.float64) @ right
        assert before.shape == values.shape, f"{values.shape} onto {before.shape}"
        result = Accumulator((values + before if use_acc else values).astype(np.float32), product)
        self.memory.pause()
        return result if is_async else self.wait_products(0, [result])

    def wait_products(self, num_outstanding: int = 0, deps: Any = ()) -> Any:
        me = self.memory.now
        while len(me.products) > num_outstanding:
            me.finish(me.products.pop(0))
        found = [
            dep if isinstance(dep, Accumulator) and dep.product is not None and not dep.product.done
            else tensor(dep.values if isinstance(dep, Accumulator) else dep)
            for dep in deps
        ]  # fmt: skip
        return found[0] if len(found) == 1 else tuple(found)

    # ---- the language

    def language(self, program: int, programs: int) -> dict[str, Any]:
        def cast(shape: list[int], value: float, dtype: str, layout: object = None) -> Tensor:
            return tensor(np.full(shape, value, DTYPES[dtype]))

        gl = SimpleNamespace(
            **{name: name for name in DTYPES}, SliceLayout=_nothing, DotOperandLayout=_nothing, BlockedLayout=_nothing,
            allocate_shared_memory=lambda dtype, shape, layout: Room.allocated(self.memory, dtype, shape),
            arange=lambda first, end, layout=None: tensor(np.arange(first, end, dtype=np.int32)), full=cast,
            zeros=lambda shape, dtype, layout=None: cast(shape, 0, dtype),
            load=lambda p, mask=None, other=None, **how: p.load(mask, other), store=lambda p, values, mask=None, **how: p.store(values, mask),
            where=lambda c, x, y: tensor(np.where(c, x, y)),
            minimum=lambda x, y: tensor(np.minimum(x, y)), maximum=lambda x, y: tensor(np.maximum(x, y)),
            max=lambda x, axis: tensor(np.max(np.asarray(x), axis)), sum=lambda x, axis: tensor(np.sum(np.asarray(x), axis)),
            exp2=lambda x: tensor(np.exp2(x)), cdiv=lambda x, y: -(-x // y), convert_layout=lambda x, layout, *how: x,
            expand_dims=lambda x, axis: tensor(np.expand_dims(x, axis)), multiple_of=lambda x, n: x, max_contiguous=lambda x, n: x,
            NVMMADistributedLayout=_nothing, inline_asm_elementwise=lambda asm, constraints, args, *how: INSTRUCTIONS[asm](*args),
            static_range=_range, static_assert=_nothing, num_warps=lambda: self.memory.now.warps,
            thread_barrier=self.thread_barrier, program_id=lambda axis: program, num_programs=lambda axis: programs,
            warp_specialize=lambda functions, warps, registers: self.memory.specialise(functions, warps),
        )  # fmt: skip
        copies = SimpleNamespace(
            async_copy_global_to_shared=self.copy, commit_group=self.commit_group, wait_group=self.wait_group,
            mbarrier_arrive=self.arrive_when_copied,
        )  # fmt: skip
        mbarrier = SimpleNamespace(
            init=self.init, arrive=self.arrive, expect=self.expect, wait=self.wait, invalidate=_nothing, MBarrierLayout=_nothing,
        )  # fmt: skip
        tma = SimpleNamespace(
            async_copy_global_to_shared=self.engine_load, async_copy_shared_to_global=self.engine_store, store_wait=self.wait_stores,
        )  # fmt: skip
        return {
            "gl": gl, "async_copy": copies, "mbarrier": mbarrier, "tma": tma, "fence_async_shared": self.fence,
            "warpgroup_mma": self.multiply, "warpgroup_mma_init": lambda x: Accumulator(np.asarray(x)),
            "warpgroup_mma_wait": self.wait_products, "range": _range, "gdc_wait": _nothing, "gdc_launch_dependents": _nothing,
        }  # fmt: skip

    def finish(self) -> None:
        me = self.memory.now
        assert not me.products and not me.stores and not self.memory.flying, "something is still on its way at the end"


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _range(*bounds: Any, **how: Any) -> range:
    return range(*(int(bound) for bound in bounds))


def _barrier(room: Room) -> Barrier:
    assert room.barrier is not None, "a barrier that was not initialised"
    return room.barrier


def argument(value: Any) -> Any:
    """What a launch passes, as an emulated kernel takes it: tensors as flat copies in float32 or whole numbers."""
    if isinstance(value, TensorDescriptor):
        return Descriptor(_array(value.base), value.block_shape)
    return _array(value).reshape(-1) if isinstance(value, torch.Tensor) else value


def _array(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy().copy()


def run(
    module: Any,
    kernel: Any,
    programs: int,
    order: Callable[[], Order] = lambda: eager(0),
    warps: int = 4,
    **arguments: Any,
) -> None:
    """All programs of a `kernel` of `module`, with its device functions and constants, over flat numpy arrays and descriptors."""
    for program in range(programs):
        emulator = Emulator(order(), warps)
        language = emulator.language(program, programs) | {"__builtins__": __builtins__}
        for name, value in vars(module).items():
            function = _function(value)
            if function is not None:
                language[name] = FunctionType(function.__code__, language, name, function.__defaults__)
            elif isinstance(value, constexpr):
                language[name] = value.value
        FunctionType(_function(kernel).__code__, language)(
            **{name: Pointer(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        )
        emulator.finish()


def statements(module: Any, name: str) -> list[int]:
    """The lines of `module` that do nothing but call `name`, as `mbarrier.wait`."""
    tree = ast.parse(inspect.getsource(module))
    return [node.lineno for node in ast.walk(tree) if _is_call(node, name)]


def without(module: Any, line: int) -> SimpleNamespace:
    """The module with the statement of this line taken out, for `run`; its kernels are functions there."""
    tree = ast.parse(inspect.getsource(module))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    made = dict(vars(module))
    for function in functions:
        function.decorator_list, function.returns = [], None
        for node in ast.walk(function):
            for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
                if isinstance(body, list):
                    body[:] = [ast.Pass(lineno=line, col_offset=0) if x.lineno == line else x for x in body]
    exec(compile(ast.fix_missing_locations(ast.Module(list(functions), [])), inspect.getfile(module), "exec"), made)
    for function in functions:
        made[function.name].emulated = isinstance(getattr(module, function.name), GluonJITFunction)
    return SimpleNamespace(**made)


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == name


def _function(value: Any) -> Any:
    """What is run of a device function; plain functions are such too, where a test has made the module."""
    if isinstance(value, GluonJITFunction):
        return value.fn
    return value if isinstance(value, FunctionType) and getattr(value, "emulated", False) else None
