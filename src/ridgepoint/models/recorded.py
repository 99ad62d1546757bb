"""A whole step of a packed decoder, recorded once at capacity and replayed by one native call.

Recorded from the same layer code that runs eagerly: there is no second model. Inputs are copied into fixed buffers, the
operators run on as many rows as the step has, and the logits are a view of a fixed buffer that the next step overwrites.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.native import LOGIT_ROWS
from ridgepoint.kernels.tensor_call import Recording, recording
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs


class RecordedStep:
    """Replays steps of up to `max_tokens` tokens of up to `max_seqs` sequences. Raises `NotRecordableError` for a decoder
    with work outside the native operators (unpacked weights, or blocks that are not in the native layout)."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, max_tokens: int, max_seqs: int, max_blocks_per_seq: int
    ) -> None:
        self.max_tokens, self.max_seqs = max_tokens, max_seqs
        self._inputs = StepInputs(
            token_ids_T=_zeros(max_tokens),
            positions_T=_zeros(max_tokens),
            slots_T=_zeros(max_tokens) - 1,
            query_starts_B1=_zeros(max_seqs + 1),
            context_lens_B=_zeros(max_seqs),
            block_tables_BN=torch.zeros(max_seqs, max_blocks_per_seq, dtype=torch.int64),
            logit_rows_R=_zeros(max_seqs),
        )
        ctx = PagedContext(cache, self._inputs)
        self._num_seqs = ctx.plan.num_seqs
        with torch.no_grad(), recording(max_tokens, max_seqs) as self._recording:
            x_TD = decoder.hidden(self._inputs.token_ids_T, ctx)
            self._recording.rows_from = LOGIT_ROWS
            # The wanted rows of x: a lookup, as of tokens in a table.
            self._logits_RV = decoder.logits(embed(self._inputs.logit_rows_R, x_TD, 1.0, x_TD.dtype))

    @property
    def recording(self) -> Recording:
        return self._recording

    def fits(self, inputs: StepInputs) -> bool:
        seqs, blocks = inputs.block_tables_BN.shape
        return (
            inputs.token_ids_T.shape[0] <= self.max_tokens
            and seqs <= self.max_seqs
            and inputs.logit_rows_R.shape[0] <= self.max_seqs
            and blocks <= self._inputs.block_tables_BN.shape[1]
        )

    def load(self, inputs: StepInputs) -> None:
        """Copy a step's inputs into the fixed buffers."""
        for field in fields(StepInputs):
            given, fixed = getattr(inputs, field.name), getattr(self._inputs, field.name)
            if given.dim() == 1:
                fixed[: given.shape[0]] = given
            else:
                fixed[: given.shape[0], : given.shape[1]] = given
        assert self._num_seqs is not None
        self._num_seqs[0] = inputs.context_lens_B.shape[0]

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """`logits_RV` float32 of the wanted rows, valid until the next call."""
        if not self.fits(inputs):
            raise ValueError(
                f"a step of {inputs.token_ids_T.shape[0]} tokens does not fit one recorded for {self.max_tokens}"
            )
        self.load(inputs)
        rows = inputs.logit_rows_R.shape[0]
        self._recording.replay(inputs.token_ids_T.shape[0], rows)
        return self._logits_RV[:rows]


def _zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)
