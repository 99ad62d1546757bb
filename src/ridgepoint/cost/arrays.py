"""Arithmetic that takes a float or a numpy array: the few operations whose Python and numpy spellings differ.

The scheduler asks for one step at a time (a float must cost nanoseconds, not a numpy dispatch); the planner sweeps
thousands of layouts at once. Everything else in `cost` is written in plain operators, which serve both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# A float, or an array of one value per plan; int is a float to the type system.
Num = Any


def is_scalar(value: Num) -> bool:
    return type(value) is float or type(value) is int or np.ndim(value) == 0


def largest(*values: Num) -> Num:
    if all(type(value) in (float, int) for value in values):
        return max(values)
    result = values[0]
    for value in values[1:]:
        result = np.maximum(result, value)
    return result


def smallest(*values: Num) -> Num:
    if all(type(value) in (float, int) for value in values):
        return min(values)
    result = values[0]
    for value in values[1:]:
        result = np.minimum(result, value)
    return result


def where(condition: Num, yes: Num, no: Num) -> Num:
    if type(condition) is bool:
        return yes if condition else no
    return np.where(condition, yes, no)


def ceil(value: Num) -> Num:
    return math.ceil(value) if type(value) in (float, int) else np.ceil(value)


def exp(value: Num) -> Num:
    return math.exp(value) if type(value) in (float, int) else np.exp(value)


def log2(value: Num) -> Num:
    return math.log2(value) if type(value) in (float, int) else np.log2(value)


def all_true(condition: Num) -> bool:
    return condition if type(condition) is bool else bool(np.all(condition))


def soft_max(first: Num, second: Num, power: float) -> Num:
    """Smooth maximum of two non-negative times: overlap is never perfect where the two are alike. Never below either."""
    top = largest(first, second)
    low = smallest(first, second)
    ratio = low / where(top > 0, top, 1.0)
    return top * (1.0 + ratio**power) ** (1.0 / power)
