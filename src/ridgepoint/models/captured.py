"""Decode steps captured as CUDA graphs, one for each size of a ladder, replayed without a word to the host.

Captured from the same layer code that runs eagerly: there is no second model. A step is padded to the next size; its
inputs lie at fixed places (`staging.views`), so that staging them is all that a replay needs; tables, which travel as narrow
as they are, are laid out at a fixed stride within the graph. Graphs share one memory pool, because only one runs at a time.
Knows nothing of tokens' meaning: `ends` does what comes before and after the layers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from ridgepoint.kernels.spread import spread
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.staging import ORDER, Staging, pad_decode

PADDING_FRAC = 1 / 8  # of a step, at most, above SMALL sequences
SMALL = 8


class Ends(Protocol):
    """What a step does around its layers."""

    def enter(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """The ids to embed."""
        ...

    def leave(self, logits_RV: torch.Tensor) -> None:
        """Use the wanted rows' logits."""
        ...


class CapturableEnds(Ends, Protocol):
    """`mode` is one of `modes`, each captured by itself."""

    mode: str

    @property
    def modes(self) -> tuple[str, ...]: ...


Body = Callable[[], None]
Capture = Callable[[Body], Body]


class GraphCapture:
    """Turns a body of device work into its replay. `timed` is told what the time goes to: the first run, outside the graph,
    compiles kernels ("compile"), the second is the capture."""

    def __init__(self, device: torch.device, timed: Callable[[str], AbstractContextManager[None]]) -> None:
        self._device, self._timed = device, timed
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)  # one: memory that a stream has used stays that stream's

    def __call__(self, body: Body) -> Body:
        with self._timed("compile"):
            self._aside.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._aside):
                body()
            torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with self._timed("capture"), torch.cuda.graph(graph, pool=self._pool):
            body()
        return graph.replay


def ladder(max_seqs: int) -> tuple[int, ...]:
    """Sizes that steps are padded to: 1, 2, 4, 8, then so that padding is under 8 rows or `PADDING_FRAC`."""
    sizes = [size for size in (1, 2, 4, SMALL) if size < max_seqs]
    while sizes and sizes[-1] >= SMALL:
        grown = sizes[-1] + max(SMALL, int(sizes[-1] * PADDING_FRAC) // SMALL * SMALL)
        if grown >= max_seqs:
            break
        sizes.append(grown)
    return (*sizes, max_seqs)


def decode_body(decoder: Decoder, cache: KVCache, ends: Ends, inputs: StepInputs, logits_RV: torch.Tensor) -> None:
    """A decode step from ids to tokens; logits are written where they will be found. Every row is wanted, in an order of its own."""
    ids_T = ends.enter(inputs.token_ids_T)
    x_TD = decoder.hidden(ids_T, PagedContext(cache, inputs))
    ends.leave(decoder.logits(x_TD.index_select(0, inputs.logit_rows_R), out=logits_RV))


class CapturedStep:
    """Decode steps of up to the largest of `sizes` sequences. `scratch_block` belongs to padding rows."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        staging: Staging,
        ends: CapturableEnds,
        *,
        sizes: Iterable[int],
        max_blocks_per_seq: int,
        scratch_block: int,
        capture: Capture,
    ) -> None:
        self.sizes = tuple(sorted(sizes))
        self._decoder, self._cache, self._ends = decoder, cache, ends
        self._scratch_block = scratch_block
        self._max_blocks = max_blocks_per_seq
        device = cache.layers[0].device
        largest = self.sizes[-1]
        self._tables_BN = torch.full((largest, max_blocks_per_seq), scratch_block, dtype=torch.int64, device=device)
        self._logits_RV = torch.empty(largest, decoder.spec.vocab_size, dtype=torch.float32, device=device)
        self._replays: dict[tuple[int, str], Body] = {}
        self._fixed: dict[int, StepInputs] = {}
        self._packed: dict[int, torch.Tensor] = {}
        self._table_width_1 = staging.table_width_1
        columns = np.zeros(tuple(staging.columns.shape), dtype=np.int64)
        for size in reversed(self.sizes):  # the largest first: the others then fit into its memory
            fixed = replace(staging.views(size, size, size, 1), block_tables_BN=self._tables_BN[:size])
            self._fixed[size] = fixed
            packed_N = self._packed[size] = staging.packed_tables(size)
            staging.stage(pad_decode(_NOTHING, size, scratch_block, cache.block_tokens), columns)
            for mode in ends.modes:
                ends.mode = mode
                self._replays[size, mode] = capture(partial(self._body, fixed, packed_N))

    def _body(self, inputs: StepInputs, packed_N: torch.Tensor) -> None:
        spread(packed_N, self._table_width_1, inputs.block_tables_BN)
        logits_RV = self._logits_RV[: len(inputs.token_ids_T)]
        decode_body(self._decoder, self._cache, self._ends, inputs, logits_RV)

    def pad(self, inputs: HostInputs) -> HostInputs:
        """A decode step at the smallest size that holds it; any other step as it is."""
        num_seqs, num_columns = inputs.block_tables_BN.shape
        if not inputs.is_decode or num_seqs > self.sizes[-1] or num_columns > self._max_blocks:
            return inputs
        size = self.sizes[bisect_left(self.sizes, num_seqs)]
        return pad_decode(inputs, size, self._scratch_block, self._cache.block_tokens)

    def runs(self, inputs: StepInputs) -> bool:
        """Whether this is a decode step at one of the sizes."""
        num_seqs, num_columns = inputs.block_tables_BN.shape
        alike = inputs.token_ids_T.shape[0] == num_seqs == inputs.logit_rows_R.shape[0]
        return alike and num_seqs in self._fixed and num_columns <= self._max_blocks

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """`logits_RV` float32 of the wanted rows, valid until the next call."""
        size, num_columns = inputs.block_tables_BN.shape
        fixed = self._fixed[size]
        if inputs.token_ids_T.data_ptr() != fixed.token_ids_T.data_ptr():  # not staged where it belongs
            for name in ORDER[:-1]:
                getattr(fixed, name).copy_(getattr(inputs, name))
            self._packed[size][: size * num_columns].copy_(inputs.block_tables_BN.reshape(-1))
            self._table_width_1.fill_(num_columns)
        self._replays[size, self._ends.mode]()
        return self._logits_RV[:size]


_EMPTY = np.zeros(0, dtype=np.int64)
_NOTHING = HostInputs(
    token_ids_T=_EMPTY, positions_T=_EMPTY, slots_T=_EMPTY, query_starts_B1=np.zeros(1, dtype=np.int64),
    context_lens_B=_EMPTY, block_tables_BN=np.zeros((0, 0), dtype=np.int64), logit_rows_R=_EMPTY,
)  # fmt: skip
