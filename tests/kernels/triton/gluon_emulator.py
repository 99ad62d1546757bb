"""Runs a Gluon kernel's own source over numpy, program by program, and refuses what its shared memory would not survive.

Gluon has no interpreter. Here a copy arrives when it is waited for (until then its room holds NaN), a product is read when it is
waited for, and every room knows who uses it: the matrix units may read what was written, then fenced, then passed a barrier;
a room may be written when its readers have been waited for and a barrier passed since. Anything else raises. Warps are taken to be in
step, so what lies between two barriers is not told apart further.
"""

from __future__ import annotations

from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.language import constexpr

DTYPES = {"int32": np.int32, "int64": np.int64, "float32": np.float32, "bfloat16": "bfloat16"}


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


class Room:
    """Of shared memory, with the state of its latest write and of its readers."""

    def __init__(self, shape: list[int]) -> None:
        self.values = np.full(shape, np.nan, np.float32)
        self.parts = [Room(shape[1:]) for _ in range(shape[0])] if len(shape) == 3 else []
        self.state, self.readers, self.left = "unwritten", 0, False

    def index(self, place: int) -> Room:
        return self.parts[int(place)]

    def permute(self, order: tuple[int, int]) -> tuple[Room, tuple[int, int]]:
        return self, order


class Emulator:
    def __init__(self) -> None:
        self.rooms: list[Room] = []
        self.asked: list[tuple[Room, np.ndarray]] = []
        self.running: list[list[Room]] = []  # products, in order, with what they read

    # ---- shared memory

    def allocate(self, dtype: str, shape: list[int], layout: object) -> Room:
        room = Room(shape)
        self.rooms += room.parts or [room]
        room.store = lambda values, room=room: self.write(room, values, "written")  # type: ignore[attr-defined]
        return room

    def write(self, room: Room, values: np.ndarray, state: str) -> None:
        assert room.readers == 0, "written while the matrix units read it"
        assert not room.left, "written before every warp is known to have read it"
        assert room.state != "asked", "written while a copy is on its way to it"
        room.values, room.state = np.asarray(values, np.float32), state

    def copy(self, room: Room, pointer: Pointer) -> None:
        values = pointer.memory[pointer.offset]
        self.write(room, np.full_like(values, np.nan), "asked")
        self.asked.append((room, values))

    def wait_group(self, outstanding: int) -> None:
        assert outstanding == 0
        for room, values in self.asked:
            room.values, room.state = values, "written"
        self.asked.clear()

    def fence(self) -> None:
        for room in self.rooms:
            room.state = "fenced" if room.state == "written" else room.state

    def barrier(self) -> None:
        for room in self.rooms:
            room.state, room.left = "visible" if room.state == "fenced" else room.state, False

    # ---- products

    def multiply(self, a: Any, b: Any, acc: np.ndarray, use_acc: bool = True, is_async: bool = False) -> Tensor:
        assert is_async
        operands = []
        for operand in (a, b):
            room, order = operand if isinstance(operand, tuple) else (operand, (0, 1))
            assert room.state == "visible", f"multiplied while {room.state}"
            room.readers += 1
            operands.append(room.values.transpose(order))
        self.running.append([operand[0] if isinstance(operand, tuple) else operand for operand in (a, b)])
        product = operands[0].astype(np.float64) @ operands[1]
        return tensor((np.asarray(acc) * bool(use_acc) + product).astype(np.float32))

    def wait_products(self, outstanding: int, deps: list[Tensor]) -> Tensor:
        while len(self.running) > outstanding:
            for room in self.running.pop(0):
                room.readers -= 1
                room.left = True
        return deps[0]

    # ---- the language

    def language(self, program: int, programs: int) -> dict[str, Any]:
        def cast(shape: list[int], value: float, dtype: str, layout: object) -> Tensor:
            return tensor(np.full(shape, value, DTYPES[dtype]))

        gl = SimpleNamespace(
            **{name: name for name in DTYPES}, SliceLayout=_nothing, allocate_shared_memory=self.allocate,
            arange=lambda first, end, layout: tensor(np.arange(first, end, dtype=np.int32)), full=cast,
            load=lambda p: tensor(p.memory[p.offset]), store=_store, where=lambda c, x, y: tensor(np.where(c, x, y)),
            minimum=lambda x, y: tensor(np.minimum(x, y)), maximum=lambda x, y: tensor(np.maximum(x, y)),
            max=lambda x, axis: tensor(np.max(np.asarray(x), axis)), sum=lambda x, axis: tensor(np.sum(np.asarray(x), axis)),
            exp2=lambda x: tensor(np.exp2(x)), convert_layout=lambda x, layout: x, thread_barrier=self.barrier,
            program_id=lambda axis: program, num_programs=lambda axis: programs,
        )  # fmt: skip
        copies = SimpleNamespace(
            async_copy_global_to_shared=self.copy, commit_group=lambda: None, wait_group=self.wait_group
        )
        return {
            "gl": gl, "async_copy": copies, "fence_async_shared": self.fence, "warpgroup_mma": self.multiply,
            "warpgroup_mma_init": lambda x: x, "warpgroup_mma_wait": self.wait_products, "range": _range, "gdc_wait": _nothing,
            "gdc_launch_dependents": _nothing,
        }  # fmt: skip


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _range(*bounds: Any) -> range:
    return range(*(int(bound) for bound in bounds))


def _store(pointer: Pointer, values: np.ndarray) -> None:
    pointer.memory[pointer.offset] = values


def run(module: Any, kernel: Any, programs: int, **arguments: Any) -> None:
    """All programs of a `kernel` of `module`, with its device functions and constants, over flat numpy arrays."""
    for program in range(programs):
        emulator = Emulator()
        language = emulator.language(program, programs) | {"__builtins__": __builtins__}
        for name, value in vars(module).items():
            if isinstance(value, GluonJITFunction):
                language[name] = FunctionType(value.fn.__code__, language)
            elif isinstance(value, constexpr):
                language[name] = value.value
        FunctionType(kernel.fn.__code__, language)(
            **{name: Pointer(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        )
        assert not emulator.running and not emulator.asked, "something is still on its way at the end"
