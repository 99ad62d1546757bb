"""The integers of a step on their way from host arrays to device tensors: one pinned buffer, one copy, fixed places.

Where an array lies depends on the sizes of those before it and on nothing else, so a captured step may keep the addresses:
`views` says where `stage` will put the inputs of a step of given sizes. Starts are aligned, so that a kernel compiled for
one step's pointers fits them all. Knows shapes, not what the numbers mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.models.paged import StepInputs

ALIGN = 16  # elements of 8 bytes: 128 bytes
NUM_HOSTS = 2  # one is being copied while the other is filled
MAX_LAYOUTS = 512  # remembered; decode steps need one for each size and width of tables
Shapes = tuple[tuple[int, ...], ...]


# Tables go last: their width changes from step to step, and everything before them stays in its place.
ORDER = (
    "token_ids_T",
    "positions_T",
    "slots_T",
    "context_lens_B",
    "query_starts_B1",
    "logit_rows_R",
    "block_tables_BN",
)


def pad_decode(inputs: HostInputs, num_seqs: int, scratch_block: int, block_tokens: int) -> HostInputs:
    """A decode step with rows added up to `num_seqs`. A padding row is a sequence of one token in a block that belongs to
    nobody; all of them are alike, so they visit the same few experts."""
    num_real, num_columns = inputs.block_tables_BN.shape
    if num_real > num_seqs or not inputs.is_decode:
        raise ValueError(
            f"a step of {len(inputs.token_ids_T)} tokens cannot be padded to {num_seqs} decoding sequences"
        )
    if num_real == num_seqs:
        return inputs

    def padded(values: np.ndarray, value: int) -> np.ndarray:
        return np.concatenate((values, np.full(num_seqs - num_real, value, dtype=np.int64)))

    tables_BN = np.full((num_seqs, max(1, num_columns)), scratch_block, dtype=np.int64)
    tables_BN[:num_real, :num_columns] = inputs.block_tables_BN
    return HostInputs(
        token_ids_T=padded(inputs.token_ids_T, 0),
        positions_T=padded(inputs.positions_T, 0),
        slots_T=padded(inputs.slots_T, scratch_block * block_tokens),
        query_starts_B1=np.arange(num_seqs + 1),
        context_lens_B=padded(inputs.context_lens_B, 1),
        block_tables_BN=tables_BN,
        logit_rows_R=np.concatenate((inputs.logit_rows_R, np.arange(num_real, num_seqs))),
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the arrays of a step of certain sizes lie, on the device and in each host buffer."""

    spans: list[tuple[int, int]]
    device: torch.Tensor
    hosts: list[torch.Tensor]
    inputs: StepInputs


class Staging:
    """Room for steps of up to `max_tokens` tokens of `max_seqs` sequences, after `num_columns` columns of `max_seqs`
    values each that travel with every step (`columns`: what the sampler wants to know)."""

    def __init__(
        self, *, max_tokens: int, max_seqs: int, max_blocks_per_seq: int, num_columns: int, device: torch.device
    ) -> None:
        self.max_tokens, self.max_seqs = max_tokens, max_seqs
        # Prompts that are scored want logits of many rows, so logit rows are bounded by tokens and sequences together.
        sizes = (num_columns * max_seqs + 1, *3 * (max_tokens,), max_seqs, max_seqs + 1, max_tokens + max_seqs,
                 max_seqs * max_blocks_per_seq)  # fmt: skip
        capacity = sum(_aligned(size) for size in sizes)
        self._device = torch.zeros(capacity, dtype=torch.int64, device=device)
        on_gpu = device.type == "cuda"
        self._hosts = [torch.zeros(capacity, dtype=torch.int64, pin_memory=on_gpu) for _ in range(NUM_HOSTS)]
        self._copied = [torch.cuda.Event() if on_gpu else None for _ in range(NUM_HOSTS)]
        self._arrays = [host.numpy() for host in self._hosts]
        self._turn = 0
        self._columns_size, self._max_blocks = num_columns * max_seqs, max_blocks_per_seq
        self._layouts: dict[Shapes, _Layout] = {}
        self.columns = self._device[: self._columns_size].view(num_columns, max_seqs)
        self.table_width_1 = self._device[self._columns_size : self._columns_size + 1]  # columns of the step's tables

    def stage(self, inputs: HostInputs, columns: np.ndarray) -> StepInputs:
        """Start the copy of a step's inputs; the views are valid, in stream order, until the next call.

        `columns` are int64, or float64 seen as int64. Raises ValueError for a step beyond the capacity."""
        self._turn = (self._turn + 1) % NUM_HOSTS
        array, copied = self._arrays[self._turn], self._copied[self._turn]
        given = [getattr(inputs, name) for name in ORDER]
        layout = self._layout(tuple([values.shape for values in given]))
        if copied is not None:
            copied.synchronize()  # two steps ago: over long since
        array[: self._columns_size] = columns.reshape(-1)
        array[self._columns_size] = inputs.block_tables_BN.shape[1]
        for values, (start, stop) in zip(given, layout.spans, strict=True):
            array[start:stop] = values.reshape(-1)
        layout.device.copy_(layout.hosts[self._turn], non_blocking=True)
        if copied is not None:
            copied.record()
        return layout.inputs if inputs.is_decode else replace(layout.inputs, known=inputs.known)

    def views(self, num_tokens: int, num_seqs: int, num_logit_rows: int, num_table_columns: int) -> StepInputs:
        """Where `stage` puts the inputs of a step of these sizes."""
        tokens, seqs = (num_tokens,), (num_seqs,)
        return self._layout(
            (tokens, tokens, tokens, seqs, (num_seqs + 1,), (num_logit_rows,), (num_seqs, num_table_columns))
        ).inputs

    def packed_tables(self, num_seqs: int) -> torch.Tensor:
        """Where `stage` puts the tables of a step that decodes `num_seqs` sequences, row after row, whatever their width."""
        first = self.views(num_seqs, num_seqs, num_seqs, 1).block_tables_BN.storage_offset()
        return self._device[first : first + num_seqs * self._max_blocks]

    def _layout(self, shapes: Shapes) -> _Layout:
        """Made once for each combination of sizes: making a dozen views costs the host more than the copy does."""
        layout = self._layouts.get(shapes)
        if layout is None:
            if len(self._layouts) == MAX_LAYOUTS:
                self._layouts.clear()  # prompts come in endless sizes
            layout = self._layouts[shapes] = self._lay_out(shapes)
        return layout

    def _lay_out(self, shapes: Shapes) -> _Layout:
        spans, end = [], _aligned(self._columns_size + 1)
        for shape in shapes:
            spans.append((end, end + math.prod(shape)))
            end += _aligned(math.prod(shape))
        if end > len(self._device):
            raise ValueError(f"a step of {shapes[0][0]} tokens is beyond this staging's {self.max_tokens}")
        views: dict[str, Any] = {
            name: self._device[start:stop].view(shape)
            for name, (start, stop), shape in zip(ORDER, spans, shapes, strict=True)
        }
        return _Layout(
            spans=spans,
            device=self._device[:end],
            hosts=[host[:end] for host in self._hosts],
            inputs=StepInputs(**views),
        )


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
