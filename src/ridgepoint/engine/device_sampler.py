"""Sampling that stays on the device: the tokens of a step are chosen there and are the next step's inputs there.

Each sequence's last token is kept by its row; an input token of `-1 - row` stands for it. What sampling needs to know of a
request travels as one column of numbers per sequence with the step's inputs. What a request with rules (penalties, biases,
tokens it may not end with yet) has said and adds lies in a seat of tables, which is filled when the request first samples in
its row and kept by the device after that. No such rule makes a step wait for the host. A constraint does: what it bans is known
when the token before is, so its seat is filled for every draw, and the step that draws is read before the next one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ridgepoint.engine.sampler import addends_of, edits, penalises
from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import IN_PROMPT, IS_STOP, DeviceRules, DeviceShaping
from ridgepoint.kernels.sample.random import uniforms
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request

# The columns. The ones from TEMPERATURE on are float64.
ROW, TOP_K, SEAT, BANNED, NUM_TOP, TEMPERATURE, TOP_P, MIN_P, UNIFORM, REPETITION, PRESENCE, FREQUENCY = range(12)
NUM_COLUMNS = 12
GREEDY, DRAWN, RULED = "greedy", "drawn", "ruled"
MOST_TOP = (
    20  # alternatives that a captured step lists; who wants more has them listed after it, as scored prompts have
)


@dataclass(slots=True)
class _Seat:
    """Whose tokens the tables of a row hold, since which admission."""

    request: Request | None = None
    admission: int = -1


class DeviceSampler:
    """`columns` is where the step's columns arrive: int64 [NUM_COLUMNS, max_seqs]."""

    modes = (GREEDY, DRAWN, RULED)

    def __init__(self, columns: torch.Tensor, vocab_size: int) -> None:
        self.mode = GREEDY
        self._max_seqs = columns.shape[1]
        self._columns = columns
        device = columns.device
        # The row after the last belongs to padding and to logits that nobody samples from.
        self._last_S = torch.zeros(self._max_seqs + 1, dtype=torch.int64, device=device)
        self._counts_SV = torch.zeros(self._max_seqs, vocab_size, dtype=torch.int32, device=device)
        self._addends_SV = torch.zeros(self._max_seqs, vocab_size, dtype=torch.float32, device=device)
        self._seats = [_Seat() for _ in range(self._max_seqs)]
        # Of the latest step; scores only after one whose mode is RULED.
        self.ids_R = torch.zeros(self._max_seqs, dtype=torch.int64, device=device)
        self.chosen_R = torch.zeros(self._max_seqs, dtype=torch.float32, device=device)
        self.top_ids_RN = torch.zeros(self._max_seqs, MOST_TOP, dtype=torch.int64, device=device)
        self.top_RN = torch.zeros(self._max_seqs, MOST_TOP, dtype=torch.float32, device=device)

    def columns(self, requests: Sequence[Request]) -> np.ndarray:
        """What the device must know of the requests that are sampled, in order; also chooses the mode."""
        count = len(requests)
        columns = np.zeros((NUM_COLUMNS, self._max_seqs), dtype=np.int64)
        columns[ROW] = self._max_seqs
        columns[ROW, :count] = [request.row for request in requests]
        params: list[SamplingParams] = [request.params for request in requests]
        ruled = any(p.logprobs is not None or edits(r) for p, r in zip(params, requests, strict=True))
        drawn = ruled or any(p.temperature != 0.0 for p in params)
        floats = columns.view(np.float64)
        if drawn:
            columns[TOP_K, :count] = [p.top_k for p in params]
            floats[TEMPERATURE, :count] = [p.temperature for p in params]
            floats[TOP_P] = 1.0
            floats[TOP_P, :count] = [p.top_p for p in params]
            floats[MIN_P, :count] = [p.min_p for p in params]
            floats[UNIFORM, :count] = uniforms([r.seed for r in requests], [r.num_output for r in requests])
        if ruled:
            columns[SEAT] = columns[NUM_TOP] = -1
            columns[SEAT, :count] = [r.row if edits(r) else -1 for r in requests]
            columns[BANNED, :count] = [r.num_output < r.params.min_tokens for r in requests]
            columns[NUM_TOP, :count] = [-1 if p.logprobs is None else min(p.logprobs, MOST_TOP) for p in params]
            floats[REPETITION] = 1.0
            floats[REPETITION, :count] = [p.repetition_penalty for p in params]
            floats[PRESENCE, :count] = [p.presence_penalty for p in params]
            floats[FREQUENCY, :count] = [p.frequency_penalty for p in params]
        self.mode = RULED if ruled else DRAWN if drawn else GREEDY
        return columns

    def seat(self, requests: Sequence[Request]) -> None:
        """Fill the tables of requests with rules that come to their row, before their first step there is launched; of
        constrained ones before every draw."""
        for request in requests:
            if not edits(request):
                continue
            seat = self._seats[request.row]
            is_new = seat.request is not request or seat.admission != request.num_preemptions
            if is_new:
                seat.request, seat.admission = request, request.num_preemptions
                self._fill(self._counts_SV[request.row], *_marks_of(request))
            if is_new or request.constraint is not None:
                self._fill(self._addends_SV[request.row], *addends_of(request, request.params.logit_bias))

    def _fill(self, table_V: torch.Tensor, ids_N: np.ndarray, values_N: np.ndarray) -> None:
        table_V.zero_()
        if len(ids_N):
            table_V.index_copy_(0, self.sent(ids_N), self.sent(values_N))

    def sent(self, values: np.ndarray) -> torch.Tensor:
        """On the device, in stream order; the host does not wait."""
        tensor = torch.from_numpy(values)
        device = self._columns.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def enter(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Input tokens with the ones that only the device knows filled in."""
        return torch.where(token_ids_T < 0, self._last_S.index_select(0, (-1 - token_ids_T).clamp(min=0)), token_ids_T)

    def leave(self, logits_RV: torch.Tensor) -> None:
        """Choose a token for each of the first rows and remember it. Rows beyond `max_seqs` are scored, not sampled."""
        logits_RV = logits_RV[: self._max_seqs]
        count = len(logits_RV)
        ruled = self.mode == RULED
        seats_R = self._columns[SEAT, :count]
        edited_RV = sample.edit_on_device(logits_RV, self._rules(count)) if ruled else logits_RV
        ids_R = sample.choose_on_device(edited_RV, None if self.mode == GREEDY else self._shaping(count))
        self.ids_R[:count] = ids_R
        # A row whose logits were not numbers ends when the host reads it; until then it computes on with some token.
        self._last_S.index_copy_(0, self._columns[ROW, :count], ids_R.clamp(min=0))
        if ruled:
            sample.count_on_device(self._counts_SV, seats_R, ids_R)
            scores = sample.score_on_device(logits_RV, ids_R, self._columns[NUM_TOP, :count], MOST_TOP)
            for place, found in zip((self.chosen_R, self.top_ids_RN, self.top_RN), scores, strict=True):
                place[:count] = found

    def _shaping(self, count: int) -> DeviceShaping:
        floats = self._columns.view(torch.float64)
        return DeviceShaping(
            temperature_R=floats[TEMPERATURE, :count],
            top_k_R=self._columns[TOP_K, :count],
            top_p_R=floats[TOP_P, :count],
            min_p_R=floats[MIN_P, :count],
            uniform_R=floats[UNIFORM, :count],
        )

    def _rules(self, count: int) -> DeviceRules:
        floats = self._columns.view(torch.float64)
        return DeviceRules(
            counts_SV=self._counts_SV, addends_SV=self._addends_SV, seats_R=self._columns[SEAT, :count],
            banned_R=self._columns[BANNED, :count], repetition_R=floats[REPETITION, :count], presence_R=floats[PRESENCE, :count],
            frequency_R=floats[FREQUENCY, :count],
        )  # fmt: skip


def _marks_of(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """The request's tokens and what its counts say of each, when all of them are known."""
    counts: dict[int, int] = dict.fromkeys(request.stop_ids, IS_STOP)
    if penalises(request.params):
        for token in request.tokens[request.num_prompt :]:
            counts[token] = counts.get(token, 0) + 1
        for token in set(request.tokens[: request.num_prompt]):
            counts[token] = counts.get(token, 0) | IN_PROMPT
    return np.array(list(counts), np.int64), np.array(list(counts.values()), np.int32)
