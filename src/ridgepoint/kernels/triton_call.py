"""What the Triton paths share: when they may run, how wide the device is, descriptors of tensors for its copy engine, and how a
kernel is launched while the one before it still runs.

Kernels run on CUDA tensors, or on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported),
which is how they are proven without a GPU. Inference in bfloat16 only: callers use torch for everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

# The interpreter has no inline assembly: kernels spell out what it abbreviates when this is set.
INTERPRETED: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))

DEVICE_TYPE = "cpu" if INTERPRETED.value else "cuda"  # where the tensors of kernels live

_INTERPRETED_PROCESSORS = 3  # few enough for small problems to go round the persistent loops

_in_turn: ContextVar[bool] = ContextVar("in_turn", default=False)
_always_in_turn = os.environ.get("RIDGEPOINT_IN_TURN", "") not in ("", "0")


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernels serve these: bf16 on the device they run on, no gradient wanted."""
    present = [tensor for tensor in tensors if tensor is not None]
    return all(t.dtype == torch.bfloat16 for t in present) and on_device(*present) and not wants_gradient(*present)


def wants_gradient(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def on_device(*tensors: torch.Tensor) -> bool:
    return all(t.device.type == DEVICE_TYPE for t in tensors)


def num_multiprocessors(device: torch.device) -> int:
    return _INTERPRETED_PROCESSORS if INTERPRETED.value else _num_multiprocessors(device.index or 0)


@cache
def _num_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def describable(tensor: torch.Tensor) -> bool:
    """Whether the copy engine can address it: 16-byte aligned rows, the last axis contiguous, no empty axis."""
    size = tensor.element_size()
    aligned = all(stride * size % 16 == 0 for stride in tensor.stride()[:-1])
    return tensor.stride(-1) == 1 and aligned and tensor.data_ptr() % 16 == 0 and tensor.numel() > 0


def describe(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def overlapped() -> dict[str, bool]:
    """Options of a launch that need not wait for the end of the kernel before it: its programs come to the device while that one's
    leave, which in a graph hides most of the gap between the two. The kernel must begin with `after_previous`."""
    return {"launch_pdl": True} if has_dependent_launch() and not (_always_in_turn or _in_turn.get()) else {}


def launch_in_turn() -> None:
    """From now on, in every thread, no launch is overlapped: for a device or driver that was seen to fail at it (`overlap_trial`).
    RIDGEPOINT_IN_TURN=1 says so from outside."""
    global _always_in_turn
    _always_in_turn = True


@cache
def has_dependent_launch() -> bool:
    """Since Hopper; also where there is no GPU to ask and kernels are only compiled."""
    if INTERPRETED.value:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (9, 0)


@contextmanager
def in_turn() -> Iterator[None]:
    """Inside, in this thread, a kernel is launched when the one before it has ended: what `overlapped` is measured and checked against."""
    token = _in_turn.set(True)
    try:
        yield
    finally:
        _in_turn.reset(token)


@triton.jit
def after_previous():  # type: ignore[no-untyped-def]
    """Wait for the end of the kernel before, whose results are then seen, and let the next one come.

    Before anything is read or written, in every program: a kernel that ends has then also seen the end of all before it, so
    that whoever waits for it waits for them."""
    if not INTERPRETED and tl.target_info.cuda_capability_geq(9, 0):
        gdc_wait()
        gdc_launch_dependents()
