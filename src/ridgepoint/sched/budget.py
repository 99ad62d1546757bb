"""How full a step may be: a number of tokens, fewer of prompts beside readers, and when a timer is given also a number of
predicted seconds.

Beside readers, who wait for the step, prompts get what arithmetic hides behind reading the weights, and in a step of their
own whatever fits. The seconds are the timetable: a step should leave every `interval_s`, so work boards while the step that carries it is
still predicted to take no longer. The budget knows segments' sizes only.
"""

from __future__ import annotations

from ridgepoint.sched.step import Segment, StepCost, StepShape, StepTimer, shape_of


class StepBudget:
    """The room left in the step being filled."""

    def __init__(self, max_tokens: int, timer: StepTimer | None, interval_s: float | None) -> None:
        self._left = max_tokens
        self._left_for_prompts = max_tokens
        self._prompts: set[int] = set()  # of the segments, those of prompts
        self._timer = timer if interval_s is not None else None
        self._interval_s = interval_s
        self._segments: dict[int, Segment] = {}  # by arrival

    @property
    def num_tokens_left(self) -> int:
        return min(self._left, self._left_for_prompts)

    def segments(self) -> list[Segment]:
        return list(self._segments.values())

    def board(self, segment: Segment) -> None:
        self._segments[segment.request.arrival] = segment
        self._left -= segment.num_tokens

    def readers_boarded(self, mixed_prompt_tokens: int | None) -> None:
        """From here on prompts board; no more than so many tokens of them if anybody reads along."""
        if self._segments and mixed_prompt_tokens is not None:
            self._left_for_prompts = mixed_prompt_tokens

    def board_prompt(self, segment: Segment) -> None:
        self.board(segment)
        self._prompts.add(segment.request.arrival)
        self._left_for_prompts -= segment.num_tokens

    def unboard(self, arrival: int) -> None:
        segment = self._segments.pop(arrival, None)
        if segment is not None:
            self._left += segment.num_tokens
            if arrival in self._prompts:
                self._prompts.remove(arrival)
                self._left_for_prompts += segment.num_tokens

    def largest_chunk(self, start: int, wanted: int) -> int:
        """The most of `wanted` tokens on `start` cached ones that may still board; 0 when none may."""
        most = min(wanted, self.num_tokens_left)
        if self._timer is None or most <= 0 or self._fits(start, most, most == wanted):
            return max(most, 0)
        fits, fails = 0, most  # bisect: the prediction never falls as the chunk grows
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self._fits(start, middle, False):
                fits = middle
            else:
                fails = middle
        return fits

    def _fits(self, start: int, num_tokens: int, samples: bool) -> bool:
        assert self._timer is not None and self._interval_s is not None
        shape = shape_of(self._segments.values())
        shape.new_tokens.append(num_tokens)
        shape.cached_tokens.append(start)
        shape.num_samples += samples
        return self._timer.seconds(shape).seconds <= self._interval_s

    def decodes_fit(self, context_lens: list[int]) -> bool:
        """Whether a step with one token for each of these contexts would still leave on time."""
        if self._timer is None or self._interval_s is None:
            return True
        shape = StepShape([1] * len(context_lens), context_lens, len(context_lens))
        return self._timer.seconds(shape).seconds <= self._interval_s


def predict(timer: StepTimer | None, segments: list[Segment]) -> StepCost | None:
    return timer.seconds(shape_of(segments)) if timer is not None else None
