"""From a batch to the arrays of a step. Keeps one row of block numbers per running sequence and appends to it.

Knows where tokens go, not what is done with them. Invariant: row r holds the blocks of the sequence that sits there, as
far as any step has needed them; a sequence that left and came back is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ridgepoint.models.staging import HostInputs
from ridgepoint.sched.request import UNKNOWN, Request
from ridgepoint.sched.step import Batch


@dataclass(slots=True)
class _Seat:
    """Who sits in a row, since which admission, and how many of its blocks are written there."""

    request: Request | None = None
    admission: int = -1
    num_blocks: int = 0


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Logit rows wanted for the log-probabilities of prompt tokens: those of one segment, for `token_ids`."""

    place: int  # the segment's place in the batch
    first_row: int  # among the step's logit rows
    token_ids: list[int]


class InputBuilder:
    def __init__(self, max_num_seqs: int, max_blocks_per_seq: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tables = np.zeros((max_num_seqs, max_blocks_per_seq), dtype=np.int64)
        self._seats = [_Seat() for _ in range(max_num_seqs)]

    def build(self, batch: Batch) -> tuple[HostInputs, list[ScoredRows]]:
        """Logit rows are those of the segments that want a sample, in order, then those of scored prompt tokens.

        A token that is `UNKNOWN` is `-1 - row`: the last one sampled in the sequence's row, which the device knows."""
        size = self._block_tokens
        token_ids: list[int] = []
        starts: list[int] = []
        counts: list[int] = []
        rows: list[int] = []
        logit_rows: list[int] = []
        scoring: list[int] = []
        end = 0
        for place, segment in enumerate(batch.segments):
            request, start, count = segment.request, segment.start, segment.num_tokens
            self._write_blocks(request, -(-(start + count) // size))
            if count == 1:
                token = request.tokens[start]
                token_ids.append(token if token != UNKNOWN else -1 - request.row)
            else:
                token_ids += request.tokens[start : start + count]
            starts.append(start)
            counts.append(count)
            rows.append(request.row)
            end += count
            if segment.wants_sample:
                logit_rows.append(end - 1)
            if request.num_scored < request.num_prompt:
                scoring.append(place)
        start_B, count_B = np.array(starts), np.array(counts)
        ends_B = count_B.cumsum()
        query_starts_B1 = np.concatenate(([0], ends_B))
        if end == len(rows):  # one token each
            positions_T, row_T = start_B, np.array(rows)
        else:
            positions_T = np.arange(end) + np.repeat(start_B - query_starts_B1[:-1], count_B)
            row_T = np.repeat(np.array(rows), count_B)
        slots_T = self._tables[row_T, positions_T // size] * size + positions_T % size
        context_B = start_B + count_B
        num_columns = -(-int(context_B.max()) // size)
        scored = self._score(batch, scoring, query_starts_B1, logit_rows)
        inputs = HostInputs(
            token_ids_T=np.array(token_ids),
            positions_T=positions_T,
            slots_T=slots_T,
            query_starts_B1=query_starts_B1,
            context_lens_B=context_B,
            block_tables_BN=self._tables[rows, :num_columns],
            logit_rows_R=np.array(logit_rows, dtype=np.int64),
        )
        return inputs, scored

    def _write_blocks(self, request: Request, num_blocks: int) -> None:
        seat = self._seats[request.row]
        if seat.request is not request or seat.admission != request.num_preemptions:
            seat.request, seat.admission, seat.num_blocks = request, request.num_preemptions, 0
        if seat.num_blocks < num_blocks:
            self._tables[request.row, seat.num_blocks : num_blocks] = request.blocks[seat.num_blocks : num_blocks]
            seat.num_blocks = num_blocks

    def _score(self, batch: Batch, places: list[int], starts: np.ndarray, logit_rows: list[int]) -> list[ScoredRows]:
        """The logits of position p - 1 score prompt token p; token 0 has none."""
        scored = []
        for place in places:
            segment = batch.segments[place]
            request = segment.request
            stop = min(segment.start + segment.num_tokens + 1, request.num_prompt)
            # What was scored before a preemption is not scored again; what a step in flight scores is not counted yet.
            begin = max(request.num_scored, segment.start + 1)
            token_ids = request.tokens[begin:stop]
            if token_ids:
                scored.append(ScoredRows(place, len(logit_rows), token_ids))
                first = int(starts[place]) + begin - 1 - segment.start
                logit_rows += range(first, first + len(token_ids))
        return scored
