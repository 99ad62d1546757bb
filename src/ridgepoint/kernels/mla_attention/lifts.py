"""When prompts have their keys lifted out of the latents on a CPU, and the matrices that lift.

Lifting costs `C (N + V)` products per head and key, absorbing as many per query; a pair of both costs `N + R + V` lifted and
`2 C + R` absorbed. Enough queries at once are cheaper lifted, `catalog.lifting:lift_tokens` of them at any context. The two forms round
differently, so the choice must not follow from the chunk: it follows from the token's place in its request. Prompt tokens in
whole runs of `lift_tokens` (counted from the sequence's first) are lifted; the rest of a prompt and everything generated is
absorbed, in whatever chunk, company or recomputation it comes. Equal tokens of two requests may so have unequal bytes: whoever
reuses latents must know which form made them (`sched.prefix` does, by the runs that `lift_run` names).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

from ridgepoint.catalog.lifting import lift_tokens
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.paged_attention.native import is_native


def lift_run(kv: torch.Tensor, w_uk: object, w_uv: object) -> int | None:
    """Tokens of the runs that a layer of these blocks and matrices lifts; None where it absorbs everything."""
    if not is_native(kv) or not (isinstance(w_uk, Packed) and isinstance(w_uv, Packed)):
        return None
    return lift_tokens(w_uk.outputs, w_uk.inputs, w_uv.outputs)


class Lifts:
    """`w_uk_HNC` and `w_uv_HVC` of a layer as dense rows, in the type it computes in, made of what its packed weights hold."""

    def __init__(self, w_uk: Packed, w_uv: Packed, is_float32: bool) -> None:
        self.uk_HNC = _rows(w_uk, is_float32, turned=True)
        self.uv_HVC = _rows(w_uv, is_float32, turned=False)


_made: WeakKeyDictionary[Packed, Lifts] = WeakKeyDictionary()


def lifts_of(w_uk: Packed, w_uv: Packed, is_float32: bool) -> Lifts:
    """Made once: a few thousandths of a sparse model's weights."""
    lifts = _made.get(w_uk)
    if lifts is None:
        lifts = _made[w_uk] = Lifts(w_uk, w_uv, is_float32)
    return lifts


def _rows(weight: Packed, is_float32: bool, turned: bool) -> np.ndarray:
    """[matrices, outputs, inputs], or its transposition; bf16 as its bits. By numpy: a recording admits no torch ops."""
    heads, outputs, inputs = weight.shape
    shape = (heads, inputs, outputs) if turned else (heads, outputs, inputs)
    made: np.ndarray = native.allocate(heads * outputs * inputs * (4 if is_float32 else 2))
    out = made.view(np.float32 if is_float32 else np.uint16).reshape(shape)
    dense = np.empty((outputs, inputs), dtype=np.float32)
    for head in range(heads):
        native.library().rp_unpack(weight.address, head, dense.ctypes.data, inputs)
        rows = dense.T if turned else dense
        out[head] = rows if is_float32 else _bf16_bits(np.ascontiguousarray(rows))
    return out


def _bf16_bits(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; of finite numbers."""
    bits = x.view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded
