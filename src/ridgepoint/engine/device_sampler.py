"""Sampling that stays on the device: the tokens of a step are chosen there and are the next step's inputs there.

Each sequence's last token is kept by its row; an input token of `-1 - row` stands for it. What sampling needs to know of a
request travels as one column of numbers per sequence with the step's inputs. Requests whose rules need the tokens on the
host (penalties, biases, log-probabilities) are not for this sampler: `serves` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import DeviceShaping
from ridgepoint.kernels.sample.random import uniforms
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request

ROW, TOP_K, TEMPERATURE, TOP_P, MIN_P, UNIFORM = range(6)  # the columns; the last four are float64
NUM_COLUMNS = 6
GREEDY, DRAWN = "greedy", "drawn"


class DeviceSampler:
    """`columns` is where the step's columns arrive: int64 [NUM_COLUMNS, max_seqs]."""

    modes = (GREEDY, DRAWN)

    def __init__(self, columns: torch.Tensor) -> None:
        self.mode = GREEDY
        self._max_seqs = columns.shape[1]
        self._columns = columns
        # The row after the last belongs to padding and to logits that nobody samples from.
        self._last_S = torch.zeros(self._max_seqs + 1, dtype=torch.int64, device=columns.device)
        self.ids_R = torch.zeros(self._max_seqs, dtype=torch.int64, device=columns.device)  # of the latest step

    @staticmethod
    def serves(request: Request) -> bool:
        """Whether all of a request's rules can be followed without the host."""
        params = request.params
        return (
            params.logprobs is None
            and request.num_scored >= request.num_prompt
            and not params.logit_bias
            and (request.num_output >= params.min_tokens or not request.stop_ids)
            and params.repetition_penalty == 1.0
            and params.presence_penalty == 0.0
            and params.frequency_penalty == 0.0
        )

    def columns(self, requests: Sequence[Request]) -> np.ndarray:
        """What the device must know of the requests that are sampled, in order; also chooses the mode."""
        count = len(requests)
        columns = np.zeros((NUM_COLUMNS, self._max_seqs), dtype=np.int64)
        columns[ROW] = self._max_seqs
        columns[ROW, :count] = [request.row for request in requests]
        params: list[SamplingParams] = [request.params for request in requests]
        drawn = any(p.temperature != 0.0 for p in params)
        if drawn:
            columns[TOP_K, :count] = [p.top_k for p in params]
            floats = columns.view(np.float64)
            floats[TEMPERATURE, :count] = [p.temperature for p in params]
            floats[TOP_P] = 1.0
            floats[TOP_P, :count] = [p.top_p for p in params]
            floats[MIN_P, :count] = [p.min_p for p in params]
            floats[UNIFORM, :count] = uniforms([r.seed for r in requests], [r.num_output for r in requests])
        self.mode = DRAWN if drawn else GREEDY
        return columns

    def enter(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Input tokens with the ones that only the device knows filled in."""
        return torch.where(token_ids_T < 0, self._last_S[(-1 - token_ids_T).clamp(min=0)], token_ids_T)

    def leave(self, logits_RV: torch.Tensor) -> None:
        """Choose a token for each of the first rows and remember it. Rows beyond `max_seqs` are scored, not sampled."""
        logits_RV = logits_RV[: self._max_seqs]
        count = len(logits_RV)
        ids_R = sample.choose_on_device(logits_RV, self._shaping(count) if self.mode == DRAWN else None)
        self.ids_R[:count] = ids_R
        # A row whose logits were not numbers ends when the host reads it; until then it computes on with some token.
        self._last_S[self._columns[ROW, :count]] = ids_R.clamp(min=0)

    def _shaping(self, count: int) -> DeviceShaping:
        floats = self._columns.view(torch.float64)
        return DeviceShaping(
            temperature_R=floats[TEMPERATURE, :count],
            top_k_R=self._columns[TOP_K, :count],
            top_p_R=floats[TOP_P, :count],
            min_p_R=floats[MIN_P, :count],
            uniform_R=floats[UNIFORM, :count],
        )
