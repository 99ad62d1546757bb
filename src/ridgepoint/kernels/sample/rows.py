"""The rows of a step that are sampled: their rules and their tokens at fixed places.

Written before a step, read after it. The native kernel takes the rules as they lie here, so a recorded step can end with the
draw; every other path takes the same memory as `Shaping`. Knows no requests. Invariant: a row that nobody has written
rules for is greedy, and holds no address.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.tensor_call import is_recording, rows, submit, takes

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Edits, Scores, Shaping

_SHAPE = ("temperature", "top_k", "top_p", "min_p", "uniform")
_RULE = np.dtype(
    [(name, np.float64) for name in ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency")]
    + [(name, np.int64) for name in ("top_k", "num_seen", "seen", "counts", "num_added", "added", "addends", "num_top")]
)  # SampleRow of csrc/abi.h; addresses as integers
_NEUTRAL = np.zeros(1, _RULE)
_NEUTRAL["top_p"] = _NEUTRAL["repetition"] = 1.0
_NEUTRAL["num_top"] = -1


class SampledRows:
    """Room for `max_rows` rows over a vocabulary."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rules_R = np.zeros(max_rows, _RULE)
        self._ids_R = np.zeros(max_rows, np.int64)
        self._edits_R: list[Edits | None] = []
        self._num_top: dict[int, int] = {}  # by row, of those that are scored
        self._recorded: list[ctypes.Structure] = []  # they follow when the results need more room
        self._found: tuple[list[int], list[Scores | None]] | None = None  # by another path than the native one
        self._make_room(0)
        self.clear()

    @property
    def max_rows(self) -> int:
        return len(self._rules_R)

    def draw_by(self, uniforms: list[float]) -> None:
        """The numbers in [0, 1) of the first rows, which change with every step."""
        self._rules_R["uniform"][: len(uniforms)] = uniforms

    def clear(self) -> None:
        """Every row becomes greedy."""
        self._rules_R[:] = _NEUTRAL
        self._edits_R = [None] * self.max_rows
        self._num_top = {}
        self._is_greedy = True

    def shape(self, shaping: Shaping) -> None:
        """Of the first rows."""
        for name in _SHAPE:
            values_R = getattr(shaping, f"{name}_R")
            self._rules_R[name][: len(values_R)] = values_R
        self._is_greedy = False

    def edit(self, row: int, edits: Edits) -> None:
        """The arrays of `edits` are kept until the row's are written again."""
        rule = self._rules_R[row]
        rule["repetition"], rule["presence"], rule["frequency"] = edits.repetition, edits.presence, edits.frequency
        rule["num_seen"], rule["num_added"] = len(edits.seen_N), len(edits.added_A)
        rule["seen"], rule["counts"] = _at(edits.seen_N, np.int64), _at(edits.output_counts_N, np.int64)
        rule["added"], rule["addends"] = _at(edits.added_A, np.int64), _at(edits.addends_A, np.float32)
        self._edits_R[row] = edits

    def score(self, row: int, num_top: int) -> None:
        """Want the token's log-probability and the `num_top` best."""
        num_top = min(num_top, self._vocab_size)
        self._num_top[row] = num_top
        self._rules_R[row]["num_top"] = num_top
        if num_top > self._top_ids.shape[1]:
            self._make_room(num_top)

    def _make_room(self, most_top: int) -> None:
        self._logprobs = np.empty((self.max_rows, most_top + 1), np.float32)
        self._top_ids = np.empty((self.max_rows, most_top), np.int64)
        for operator in self._recorded:
            operator.logprobs, operator.top_ids = self._logprobs.ctypes.data, self._top_ids.ctypes.data
            operator.most_top = most_top

    def draw(self, logits_RV: torch.Tensor) -> None:
        """Choose the first rows' tokens, now or in each replay of the recording that this joins. The logits are used up:
        their memory may be edited. Rows beyond the room are left alone."""
        logits_RV = logits_RV[: self.max_rows]
        if logits_RV.dtype == torch.float32 and takes(logits_RV):
            self._draw_natively(rows(logits_RV))
            return
        count = len(logits_RV)
        self._found = implementation("sample", logits_RV).draw(
            logits_RV,
            None if self._is_greedy else self._shaping(count),
            self._edits_R[:count],
            [self._num_top.get(row) for row in range(count)],
        )

    def _draw_natively(self, logits_RV: torch.Tensor) -> None:
        operator = native.op(
            native.SampleOp, len(logits_RV), logits=logits_RV.data_ptr(), rules=self._rules_R.ctypes.data,
            ids=self._ids_R.ctypes.data, logprobs=self._logprobs.ctypes.data, top_ids=self._top_ids.ctypes.data,
            vocab=self._vocab_size, stride=logits_RV.stride(0), most_top=self._top_ids.shape[1],
        )  # fmt: skip
        if is_recording():
            self._recorded.append(operator)
        submit(operator, (self, logits_RV))

    def _shaping(self, count: int) -> Shaping:
        from ridgepoint.kernels.sample import Shaping

        return Shaping(**{f"{name}_R": self._rules_R[name][:count] for name in _SHAPE})

    def found(self, count: int) -> tuple[list[int], list[Scores | None]]:
        """Token ids of the first `count` rows, and what `score` asked for (None for the others, and where there is no token)."""
        if self._found is not None:
            (token_ids, scores), self._found = self._found, None
            return token_ids[:count], scores[:count]
        token_ids = self._ids_R[:count].tolist()
        scores = [None] * count
        for row, num_top in self._num_top.items():
            if row < count and token_ids[row] >= 0:
                values = self._logprobs[row, : num_top + 1].tolist()
                scores[row] = values[0], list(zip(self._top_ids[row, :num_top].tolist(), values[1:], strict=True))
        return token_ids, scores


def _at(array: np.ndarray, dtype: type) -> int:
    """Its address; the caller keeps it for as long as it may be read."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"edits take contiguous {dtype.__name__}, got {array.dtype} with strides {array.strides}")
    return int(array.ctypes.data)
