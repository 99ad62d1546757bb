"""From a batch to the arrays of a step, written where the step reads them. Keeps one row of block numbers per running
sequence and appends to it.

Knows where tokens go, not what is done with them. Invariant: row r holds the blocks of the sequence that sits there, as
far as any step has needed them; a sequence that left and came back is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ridgepoint.models.host_inputs import HostInputs, StepSizes
from ridgepoint.sched.request import UNKNOWN, Request
from ridgepoint.sched.step import Batch, Segment


@dataclass(slots=True)
class _Seat:
    """Who sits in a row, since which admission, and how many of its blocks are written there."""

    request: Request | None = None
    admission: int = -1
    num_blocks: int = 0


@dataclass(slots=True)
class ScoredRows:
    """Logit rows wanted for the log-probabilities of prompt tokens: those of one segment, for `token_ids`."""

    place: int  # the segment's place in the batch
    first_token: int  # of the step, whose logits score the first of them
    token_ids: list[int]
    first_row: int = -1  # among the step's logit rows: after those that are sampled


class InputBuilder:
    """Writes steps into `room`, in place. `tables` has a row for each running sequence; the room has them in the order of the
    batch, and is written anew when that order or a row has changed."""

    def __init__(self, room: HostInputs, block_tokens: int) -> None:
        self.room = room
        self._block_tokens = block_tokens
        self._tables = np.zeros_like(room.block_tables_BN)
        self._seats = [_Seat() for _ in range(room.max_seqs)]
        self._rows: list[int] = []  # of the latest step
        self._stale = True  # the tables have changed since the room's were written

    def build(self, batch: Batch) -> tuple[StepSizes, list[ScoredRows]]:
        """Logit rows are those of the segments that want a sample, in order, then those of scored prompt tokens.

        A token that is `UNKNOWN` is `-1 - row`: the last one sampled in the sequence's row, which the device knows."""
        room, size = self.room, self._block_tokens
        rows: list[int] = []
        scored: list[ScoredRows] = []
        longest = end = num_logits = 0
        for place, segment in enumerate(batch.segments):
            request, start, count = segment.request, segment.start, segment.num_tokens
            stop, row, first = start + count, request.row, end
            self._write_blocks(request, -(-stop // size))
            end += count
            if count == 1:
                token = request.tokens[start]
                room.token_ids_T[first] = token if token != UNKNOWN else -1 - row
                room.positions_T[first] = start
                room.slots_T[first] = request.blocks[start // size] * size + start % size
            else:
                position_T = np.arange(start, stop)
                room.token_ids_T[first:end] = request.tokens[start:stop]
                room.positions_T[first:end] = position_T
                room.slots_T[first:end] = self._tables[row, position_T // size] * size + position_T % size
            rows.append(row)
            room.query_starts_B1[place + 1] = end
            room.context_lens_B[place] = stop
            if room.prompt_lens_B is not None:
                room.prompt_lens_B[place] = request.num_prompt
            longest = max(longest, stop)
            if segment.wants_sample:
                room.logit_rows_R[num_logits] = end - 1
                num_logits += 1
            if request.num_scored < request.num_prompt:
                scored += _scored(place, segment, first)
        num_columns = -(-longest // size)
        if self._stale or rows != self._rows:
            room.block_tables_BN[: len(rows), :num_columns] = self._tables[rows, :num_columns]
            self._rows, self._stale = rows, False
        for wanted in scored:
            wanted.first_row, count = num_logits, len(wanted.token_ids)
            num_logits += count
            room.logit_rows_R[wanted.first_row : num_logits] = range(wanted.first_token, wanted.first_token + count)
        return StepSizes(end, len(rows), num_logits, num_columns), scored

    def _write_blocks(self, request: Request, num_blocks: int) -> None:
        seat = self._seats[request.row]
        if seat.request is not request or seat.admission != request.num_preemptions:
            seat.request, seat.admission, seat.num_blocks = request, request.num_preemptions, 0
        if seat.num_blocks < num_blocks:
            self._tables[request.row, seat.num_blocks : num_blocks] = request.blocks[seat.num_blocks : num_blocks]
            seat.num_blocks = num_blocks
            self._stale = True


def _scored(place: int, segment: Segment, first: int) -> list[ScoredRows]:
    """Of a segment whose tokens are the step's from `first` on. Logits of position p - 1 score prompt token p; token 0 has
    none."""
    request = segment.request
    stop = min(segment.start + segment.num_tokens + 1, request.num_prompt)
    # What was scored before a preemption is not scored again; what a step in flight scores is not counted yet.
    begin = max(request.num_scored, segment.start + 1)
    token_ids = request.tokens[begin:stop]
    return [ScoredRows(place, first + begin - 1 - segment.start, token_ids)] if token_ids else []
