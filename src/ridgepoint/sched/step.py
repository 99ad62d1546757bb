"""What passes between the scheduler and whoever runs a step, and the protocols of the three who meet here.

`Executor` runs a batch (a real model, workers, or predicted seconds), `StepTimer` predicts what one would cost, `Clock`
says what time it is. The scheduler is handed a timer and a time; it never asks for either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ridgepoint.sched.request import Request


@dataclass(slots=True)
class Segment:
    """Tokens `[start, start + num_tokens)` of one request, with blocks for all of them in `request.blocks`.

    `wants_sample`: the segment ends at the last known token, so its last logits give the next one.
    """

    request: Request
    start: int
    num_tokens: int
    wants_sample: bool


@dataclass(slots=True)
class StepShape:
    """What a step costs depends on no more than this: new and cached tokens of each segment, and logit rows."""

    new_tokens: list[int]
    cached_tokens: list[int]
    num_samples: int


class StepCost(Protocol):
    """A predicted step; `cost.StepCost` says more, the scheduler reads the seconds."""

    @property
    def seconds(self) -> float: ...


class StepTimer(Protocol):
    def seconds(self, shape: StepShape) -> StepCost:
        """The predicted cost of a step. Never falls when a segment gains tokens."""
        ...


@dataclass(slots=True)
class Batch:
    """One step: segments of different requests. `predicted` is None when the scheduler has no timer."""

    segments: list[Segment]
    predicted: StepCost | None
    advanced: bool = False  # counted as computed, so that the next step could be made

    @property
    def num_tokens(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)

    @property
    def sampled(self) -> list[Request]:
        """Those that get a token, in order."""
        return [segment.request for segment in self.segments if segment.wants_sample]

    @property
    def shape(self) -> StepShape:
        return shape_of(self.segments)


def shape_of(segments: Iterable[Segment]) -> StepShape:
    shape = StepShape([], [], 0)
    for segment in segments:
        shape.new_tokens.append(segment.num_tokens)
        shape.cached_tokens.append(segment.start)
        shape.num_samples += segment.wants_sample
    return shape


@dataclass(slots=True)
class StepResult:
    """`token_ids` and `logprobs` follow the segments that want a sample, in order; `logprobs` may be empty. A negative
    id says that the logits were not numbers: that request ends with an error, the others go on.

    `prompt_logprobs` maps a segment's place in the batch to an entry for each prompt token that its request had not
    scored (`Request.num_scored`) and whose logits this segment computed. Entries are opaque to the scheduler.
    """

    token_ids: list[int]
    seconds: float
    logprobs: Sequence[Any] = ()
    prompt_logprobs: dict[int, list[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Progress:
    """What a committed step did for one request: at most one new token, and the end if it came."""

    request: Request
    token_id: int | None
    logprobs: Any
    prompt_logprobs: list[Any] | None
    finish_reason: str | None


class Executor(Protocol):
    def run(self, batch: Batch) -> StepResult: ...


class InFlight(Protocol):
    """A launched step."""

    @property
    def is_known(self) -> bool:
        """Whether the next step cannot be made without its result, which is then read at once."""
        ...

    def wait(self) -> StepResult: ...


class LaunchingExecutor(Protocol):
    """An executor that can be given a step while the one before it is unread."""

    def submit(self, batch: Batch) -> InFlight:
        """Launch a step. A token that is `UNKNOWN` is the one the step before it samples for that request."""
        ...


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...
