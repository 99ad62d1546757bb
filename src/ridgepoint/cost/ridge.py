"""The ridge of a model on a machine: how many tokens a step needs for its arithmetic to take as long as reading its weights.

Left of it a step pays for bytes that nobody shares, right of it for arithmetic alone. From rates as they are given, peak or
measured; efficiencies, caches and overheads are not its business.
"""

from __future__ import annotations

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout

MOST_TOKENS = 1 << 20  # sparser than any model


def ridge_tokens(spec: ModelSpec, precision: Precision, *, flops_per_s: float, bytes_per_s: float) -> int:
    """The fewest tokens of one prompt whose step computes at least as long as it reads weights. Experts count as far as so
    many tokens are expected to visit them."""

    def computes_longer(tokens: int) -> bool:
        kernels = step_amounts(spec, Layout(), precision, StepBatch.prefill(1.0, float(tokens))).kernels
        compute_s = sum(float(kernel.repeats * kernel.flops) for kernel in kernels) / flops_per_s
        return compute_s >= sum(float(kernel.repeats * kernel.weight_bytes) for kernel in kernels) / bytes_per_s

    low, high = 0, 1
    while high < MOST_TOKENS and not computes_longer(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes_longer(middle) else (middle, high)
    return high
