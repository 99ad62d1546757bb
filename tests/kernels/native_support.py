"""What the tests of the native kernels share: every ISA, errors against float64, and the bits across threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from ridgepoint.kernels import native

ISAS = native.supported_isas() if native.available() else []
if native.available() and native.can_emulate_tiles():
    ISAS.append(native.EMULATED)
SLACK = 1.25  # how much worse than an unfused bf16 computation a kernel may be
FLOAT32_ERROR = 3e-6  # relative rms error of float32 sums of the lengths tested here

needs_native = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.load_error()}")


def rms(error: torch.Tensor) -> float:
    return float(error.double().square().mean().sqrt())


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = native.num_threads()
    native.set_num_threads(count)
    try:
        yield
    finally:
        native.set_num_threads(before)


def same_bits_whoever_computes(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result, after checking that it has the same bits again and with 1, 2 and 3 threads."""
    result = compute()
    for count in (1, 2, 3, 2):
        with threads(count):
            assert torch.equal(compute(), result), f"bits differ with {count} threads"
    return result


def surrounded(x: torch.Tensor, margin: int = 5) -> torch.Tensor:
    """`x` as a view of rows with NaN to the right, above and below: anything read beyond it shows."""
    shape = (x.shape[0] + 2, *x.shape[1:-1], x.shape[-1] + margin)
    if x.dim() != 2:
        raise ValueError("rows only")
    wide = torch.full(shape, float("nan"), dtype=x.dtype)
    wide[1:-1, : x.shape[1]] = x
    return wide[1:-1, : x.shape[1]]
