"""The integers of a step where they are made: arrays in host memory.

`HostInputs.room` makes them once, for the largest step; a step writes the first entries in place and says how many
(`StepSizes`), so a recorded step, whose operators have these addresses, finds its inputs where it looks for them. Knows
shapes, not what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.models.paged import StepInputs


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How much of each array a step uses."""

    num_tokens: int
    num_seqs: int
    num_logit_rows: int
    num_table_columns: int


@dataclass(frozen=True, kw_only=True, eq=False)
class HostInputs:
    """`StepInputs` before they leave the host; int64. Steps of devices are made without `prompt_lens_B`."""

    token_ids_T: np.ndarray
    positions_T: np.ndarray
    slots_T: np.ndarray
    query_starts_B1: np.ndarray
    context_lens_B: np.ndarray
    block_tables_BN: np.ndarray
    logit_rows_R: np.ndarray
    prompt_lens_B: np.ndarray | None = None

    @classmethod
    def room(cls, max_tokens: int, max_seqs: int, max_blocks_per_seq: int) -> Self:
        """For any step of such sizes; no token of it has a slot yet. Prompts that are scored want logits of many rows, so logit
        rows are bounded by tokens and sequences together."""

        def zeros(*shape: int) -> np.ndarray:
            return np.zeros(shape, dtype=np.int64)

        return cls(
            token_ids_T=zeros(max_tokens), positions_T=zeros(max_tokens), slots_T=zeros(max_tokens) - 1,
            query_starts_B1=zeros(max_seqs + 1), context_lens_B=zeros(max_seqs),
            block_tables_BN=zeros(max_seqs, max_blocks_per_seq), logit_rows_R=zeros(max_tokens + max_seqs),
            prompt_lens_B=zeros(max_seqs),
        )  # fmt: skip

    @property
    def max_tokens(self) -> int:
        return len(self.token_ids_T)

    @property
    def max_seqs(self) -> int:
        return len(self.context_lens_B)

    def first(self, sizes: StepSizes) -> HostInputs:
        """What a step of these sizes uses: views."""
        return HostInputs(
            token_ids_T=self.token_ids_T[: sizes.num_tokens], positions_T=self.positions_T[: sizes.num_tokens],
            slots_T=self.slots_T[: sizes.num_tokens], query_starts_B1=self.query_starts_B1[: sizes.num_seqs + 1],
            context_lens_B=self.context_lens_B[: sizes.num_seqs],
            block_tables_BN=self.block_tables_BN[: sizes.num_seqs, : sizes.num_table_columns],
            logit_rows_R=self.logit_rows_R[: sizes.num_logit_rows],
            prompt_lens_B=None if self.prompt_lens_B is None else self.prompt_lens_B[: sizes.num_seqs],
        )  # fmt: skip

    def tensors(self) -> StepInputs:
        """The same memory as tensors on the CPU."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
        return StepInputs(**tensors)

    @property
    def known(self) -> Known | None:
        """What paths may rely on; None of no sequence."""
        if len(self.context_lens_B) == 0:
            return None
        queries_B = np.diff(self.query_starts_B1)
        return Known(int(queries_B.min()), int((self.context_lens_B - queries_B).max()))

    @property
    def is_decode(self) -> bool:
        """One token and one row of logits for each sequence."""
        return len(self.token_ids_T) == len(self.context_lens_B) == len(self.logit_rows_R)
