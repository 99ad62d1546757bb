"""A whole step of a packed decoder, recorded once at capacity and replayed by one native call.

Recorded from the same layer code that runs eagerly: there is no second model. Inputs lie in a room that the operators have
the addresses of, the operators run on as many rows as the step has, and the logits are a view of a fixed buffer that the
next step overwrites. What `ends` does to them is recorded with the rest.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.native import LOGIT_ROWS
from ridgepoint.kernels.tensor_call import Recording, recording
from ridgepoint.models.captured import Ends
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.host_inputs import HostInputs, StepSizes
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs


class RecordedStep:
    """Replays steps that fit into `room`, with logits for as many rows as it has sequences. Raises `NotRecordableError` for
    a decoder with work outside the native operators (unpacked weights, or blocks that are not in the native layout)."""

    def __init__(self, decoder: Decoder, cache: KVCache, room: HostInputs, ends: Ends | None = None) -> None:
        self._room = room
        self._max_rows = room.max_seqs
        inputs = room.tensors()
        ctx = PagedContext(cache, inputs)
        assert ctx.plan.num_seqs is not None
        self._num_seqs = ctx.plan.num_seqs.numpy()
        with torch.no_grad(), recording(room.max_tokens, self._max_rows) as self._recording:
            ids_T = inputs.token_ids_T if ends is None else ends.enter(inputs.token_ids_T)
            self._rows_R = inputs.logit_rows_R[: self._max_rows]
            self._logits_RV = decoder.logits(decoder.hidden(ids_T, ctx, self._wanted))
            if ends is not None:
                ends.leave(self._logits_RV)

    def _wanted(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Rows by a lookup, as of tokens in a table. Operators recorded from here on run on such rows."""
        self._recording.rows_from = LOGIT_ROWS
        return embed(self._rows_R, x_TI, 1.0, x_TI.dtype)

    @property
    def recording(self) -> Recording:
        return self._recording

    def fits(self, sizes: StepSizes) -> bool:
        return (
            sizes.num_logit_rows <= self._max_rows
            and sizes.num_tokens <= self._room.max_tokens
            and sizes.num_seqs <= self._room.max_seqs
            and sizes.num_table_columns <= self._room.block_tables_BN.shape[1]
        )

    def run(self, sizes: StepSizes) -> torch.Tensor:
        """The step whose inputs lie in the room. `logits_RV` float32, of which those of the wanted rows are this step's,
        valid until the next call."""
        if not self.fits(sizes):
            raise ValueError(
                f"a step of {sizes.num_tokens} tokens does not fit one recorded for {self._room.max_tokens}"
            )
        self._num_seqs[0] = sizes.num_seqs
        self._recording.replay(sizes.num_tokens, sizes.num_logit_rows)
        return self._logits_RV

    def load(self, inputs: StepInputs) -> StepSizes:
        """Copy a step's inputs into the room; `run` takes the sizes."""
        sizes = StepSizes(len(inputs.token_ids_T), len(inputs.context_lens_B), len(inputs.logit_rows_R),
                          inputs.block_tables_BN.shape[1])  # fmt: skip
        place = self._room.first(sizes)
        for field in fields(HostInputs):
            given = getattr(inputs, field.name)
            getattr(place, field.name)[...] = 0 if given is None else given.numpy()
        return sizes
