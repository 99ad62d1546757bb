"""Sampling of a whole step by one native call, rows shared between the threads of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import rows

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Edits, Scores, Shaping

_RULE = np.dtype(
    [(name, np.float64) for name in ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency")]
    + [(name, np.int64) for name in ("top_k", "num_seen", "seen", "counts", "num_added", "added", "addends", "num_top")]
)  # SampleRow of csrc/abi.h; addresses as integers


def draw(
    logits_RV: torch.Tensor, shaping: Shaping | None, edits_R: list[Edits | None], num_top_R: list[int | None]
) -> tuple[list[int], list[Scores | None]]:
    logits_RV = rows(logits_RV)
    num_rows, vocab = logits_RV.shape
    rules = np.zeros(num_rows, _RULE)
    rules["top_p"] = rules["repetition"] = 1.0
    rules["num_top"] = -1
    if shaping is not None:
        for name in ("temperature", "top_k", "top_p", "min_p", "uniform"):
            rules[name] = getattr(shaping, f"{name}_R")
    for r, edits in enumerate(edits_R):
        if edits is not None:
            rule = rules[r]
            rule["repetition"], rule["presence"], rule["frequency"] = edits.repetition, edits.presence, edits.frequency
            if len(edits.seen_N):
                rule["num_seen"] = len(edits.seen_N)
                rule["seen"], rule["counts"] = _at(edits.seen_N, np.int64), _at(edits.output_counts_N, np.int64)
            if len(edits.added_A):
                rule["num_added"] = len(edits.added_A)
                rule["added"], rule["addends"] = _at(edits.added_A, np.int64), _at(edits.addends_A, np.float32)
    scored = {r: min(num_top, vocab) for r, num_top in enumerate(num_top_R) if num_top is not None}
    most_top = max(scored.values(), default=0)
    for r, num_top in scored.items():
        rules[r]["num_top"] = num_top
    ids_R = np.empty(num_rows, np.int64)
    logprobs = np.empty((num_rows, most_top + 1) if scored else (0, 1), np.float32)
    top_ids = np.empty((num_rows, most_top) if scored else (0, 0), np.int64)
    native.run(
        native.op(
            native.SampleOp, num_rows, logits=logits_RV.data_ptr(), rules=rules.ctypes.data, ids=ids_R.ctypes.data,
            logprobs=logprobs.ctypes.data, top_ids=top_ids.ctypes.data, vocab=vocab, stride=logits_RV.stride(0),
            most_top=most_top,
        )
    )  # fmt: skip
    token_ids: list[int] = ids_R.tolist()
    scores: list[Scores | None] = [None] * num_rows
    for r, num_top in scored.items():
        if token_ids[r] >= 0:
            values = logprobs[r, : num_top + 1].tolist()
            scores[r] = values[0], list(zip(top_ids[r, :num_top].tolist(), values[1:], strict=True))
    return token_ids, scores


def _at(array: np.ndarray, dtype: type) -> int:
    """Its address; the caller keeps it until the call is over."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"edits take contiguous {dtype.__name__}, got {array.dtype} with strides {array.strides}")
    return int(array.ctypes.data)
