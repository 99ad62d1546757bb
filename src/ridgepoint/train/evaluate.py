"""Held-out quality in bits per byte: a number that tokenizers of any size, and xz, can be compared by.

Knows a model only as a function from ids to negative log likelihoods. Invariant: every token of every file, its end
included, is scored exactly once, each file from a fresh context (what a compressor of single files would see).
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ridgepoint.train.tokens import Ids

NllOf = Callable[[Tensor, Tensor], Tensor]  # (ids_BS, targets_BS) -> nll_BS in nats, float32


def windows(document: Ids, start_id: int, context: int, stride: int) -> Iterator[tuple[Ids, Ids, int]]:
    """(ids, targets, first target to score): windows of at most `context`, each scoring what the one before has not."""
    ids = np.concatenate(([start_id], document))
    inputs, targets = ids[:-1], ids[1:]
    scored = 0
    while scored < len(targets):
        begin = max(0, min(scored - (context - stride), len(targets) - context))
        end = min(begin + context, len(targets))
        yield inputs[begin:end], targets[begin:end], scored - begin
        scored = end


def bits_per_byte(
    nll_of: NllOf, documents: Sequence[Ids], num_bytes: int, *, start_id: int, context: int, stride: int
) -> float:
    """Bits of all documents (each ending with its end token) over their bytes of UTF-8. Each window is padded at its
    end to whole `stride`s so that few shapes occur; padding is never scored."""
    nats = 0.0
    with torch.no_grad():
        for document in documents:
            for ids, targets, first in windows(document, start_id, context, stride):
                length = len(ids)
                pad = -length % stride
                row = torch.from_numpy(np.pad(np.stack((ids, targets)), ((0, 0), (0, pad))))
                nats += float(nll_of(row[:1], row[1:])[0, first:length].double().sum())
    return nats / math.log(2) / num_bytes


def xz_bits_per_byte(texts: Sequence[str], *, concatenated: bool) -> float:
    """`xz -9e` on each file alone, or on all of them as one stream."""
    blobs = [text.encode() for text in texts]
    total = sum(map(len, blobs))
    packed = [b"".join(blobs)] if concatenated else blobs
    return 8 * sum(len(lzma.compress(blob, preset=9 | lzma.PRESET_EXTREME)) for blob in packed) / total
