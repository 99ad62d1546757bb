"""What the Triton paths share: when they may run, how wide the device is, and descriptors of tensors for its copy engine.

Kernels run on CUDA tensors, or on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported),
which is how they are proven without a GPU. Inference in bfloat16 only: callers use torch for everything else.
"""

from __future__ import annotations

from functools import cache

import torch
import triton.language as tl
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

# The interpreter has no inline assembly: kernels spell out what it abbreviates when this is set.
INTERPRETED: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))

DEVICE_TYPE = "cpu" if INTERPRETED.value else "cuda"  # where the tensors of kernels live

_INTERPRETED_PROCESSORS = 3  # few enough for small problems to go round the persistent loops


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
