"""Calls of native operators on torch tensors: run now, or recorded to be replayed.

An op's `native.py` states its operator once, through `call`; whether it runs or joins a recording is decided here. While
recording, results are handed out from the recording's own memory, and a piece is reused when the last tensor on it is
gone: a replay goes through the same order, so it may reuse it too.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ridgepoint.errors import RidgepointError
from ridgepoint.kernels import native

DTYPES = {torch.float32: native.F32, torch.bfloat16: native.BF16}


class NotRecordableError(RidgepointError):
    """A step contains work that is not a native operator, so it cannot be recorded."""


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether native operators can work on these: library present, on the CPU, bf16 or f32, no gradient wanted."""
    present = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present):
        return False
    return all(t.device.type == "cpu" and t.dtype in DTYPES for t in present) and native.available()


def rows(x: torch.Tensor) -> torch.Tensor:
    """`x` with everything but its first axis contiguous, as the operators read it."""
    inner = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:]), strict=True):
        if size != 1 and stride != inner:
            return copied(x.contiguous(), "a strided activation")
        inner *= size
    return x


def heads(x_THP: torch.Tensor) -> torch.Tensor:
    """`x` with its last axis contiguous: the operators on heads take any stride between those."""
    return x_THP if x_THP.stride(2) == 1 else copied(x_THP.contiguous(), "a strided activation")


def copied(fresh: torch.Tensor, what: str) -> torch.Tensor:
    """`fresh` was made by torch: fine now, impossible in a recording."""
    if _recording is not None:
        raise NotRecordableError(f"{what} is copied by torch inside the step")
    return fresh


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for a result."""
    return torch.empty(shape, dtype=dtype) if _recording is None else _recording.empty(shape, dtype)


def address(tensor: torch.Tensor | None) -> int | None:
    """Where it lies. A recording keeps what it points at."""
    if tensor is None:
        return None
    if _recording is not None:
        _recording.keep(tensor)
    return tensor.data_ptr()


def call(kind: type[ctypes.Structure], num_rows: int, keep: tuple[Any, ...] = (), **fields: Any) -> None:
    """Run an operator on `num_rows` rows, or record it."""
    submit(native.op(kind, num_rows, **fields), keep)


def submit(operator: ctypes.Structure, keep: tuple[Any, ...] = ()) -> None:
    """Run an operator, or record it: what is changed in it later, replays see."""
    if _recording is None:
        native.run(operator)
    else:
        _recording.add(operator, keep)


class Recording:
    """A list of operators with their memory. `tokens` and `logit_rows` are the capacities it was recorded at."""

    def __init__(self, tokens: int, logit_rows: int) -> None:
        self.capacity = {native.TOKEN_ROWS: tokens, native.LOGIT_ROWS: logit_rows}
        self.rows_from = native.TOKEN_ROWS
        self._ops: list[ctypes.Structure] = []
        self._kept: list[Any] = []
        self._own: set[int] = set()
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)
        self._pointers: Any = None

    def __len__(self) -> int:
        return len(self._ops)

    @property
    def operators(self) -> tuple[ctypes.Structure, ...]:
        """In the order they run."""
        return tuple(self._ops)

    def add(self, operator: ctypes.Structure, keep: tuple[Any, ...]) -> None:
        if operator.rows != self.capacity[self.rows_from]:
            raise NotRecordableError(
                f"an operator on {operator.rows} rows in a step of {self.capacity[self.rows_from]}"
            )
        operator.rows_from = self.rows_from
        self._ops.append(operator)
        self._kept += keep

    def keep(self, tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().data_ptr() not in self._own:
            self._kept.append(tensor)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = int(np.prod(shape)) * dtype.itemsize
        num_bytes = max(64, -(-count // 4096) * 4096)
        memory = self._free[num_bytes].pop() if self._free[num_bytes] else native.allocate(num_bytes)
        self._own.add(memory.ctypes.data)
        view = memory[:]  # dies with the last tensor on it
        weakref.finalize(view, self._free[num_bytes].append, memory)
        self._kept.append(memory)
        return torch.from_numpy(view)[:count].view(dtype).view(shape)

    def replay(self, tokens: int, logit_rows: int) -> None:
        """Run every operator, in one native call, on the first `tokens` and `logit_rows` rows."""
        if (
            not 0 <= tokens <= self.capacity[native.TOKEN_ROWS]
            or not 0 <= logit_rows <= self.capacity[native.LOGIT_ROWS]
        ):
            raise ValueError(f"recorded for {self.capacity}, asked for {tokens} tokens and {logit_rows} logit rows")
        native.run_list(self._pointer_list(), len(self._ops), tokens, logit_rows)

    def profile(self, tokens: int, logit_rows: int) -> list[float]:
        """`replay`, with the seconds of each of `operators`."""
        return native.profile_list(self._pointer_list(), len(self._ops), tokens, logit_rows)

    def _pointer_list(self) -> Any:
        if self._pointers is None:
            self._pointers = (ctypes.c_void_p * len(self._ops))(*map(ctypes.addressof, self._ops))
        return self._pointers


_recording: Recording | None = None


class _ViewsOnly(TorchDispatchMode):
    """Refuses every torch op that computes: its work would be missing from each replay."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            raise NotRecordableError(f"the step calls torch's {func} outside the native operators")
        return func(*args, **(kwargs or {}))


@contextmanager
def recording(tokens: int, logit_rows: int) -> Iterator[Recording]:
    """Record every operator called inside instead of running it. Raises `NotRecordableError` where torch computes."""
    global _recording
    if _recording is not None:
        raise RuntimeError("already recording")
    _recording = Recording(tokens, logit_rows)
    try:
        with _ViewsOnly():
            yield _recording
    finally:
        _recording = None


def is_recording() -> bool:
    return _recording is not None
