"""What steps of a chosen shape take on this engine, measured: made-up sequences through the real executor, no scheduler.

Keys and values of the made-up past are whatever the cache holds, which costs attention the same as real ones. Token ids are
random: one token everywhere would send every row to the same experts.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ridgepoint.errors import ConfigError
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits
from ridgepoint.sched.step import Batch, Executor, Segment, StepShape

if TYPE_CHECKING:
    from ridgepoint.engine.core import EngineCore

CONTEXTS = (64, 512, 2048)
CHUNKS = (64, 256, 512, 2048)
_SAMPLING = SamplingParams(max_tokens=1)


def shapes_within(limits: Limits) -> list[StepShape]:
    """Steps that a server of these limits runs: decoding at doubling batches over short and long pasts, chunks of prompts
    new and half done, and chunks that ride along with decoding."""
    shapes: list[StepShape] = []
    batch = 1
    while batch <= limits.max_num_seqs:
        shapes += [StepShape([1] * batch, [context] * batch, batch) for context in CONTEXTS]
        batch *= 2
    shapes += [StepShape([chunk], [cached], 1) for chunk in CHUNKS for cached in (0, 1024)]
    shapes += [StepShape([1] * 8 + [chunk], [512] * 8 + [0], 9) for chunk in CHUNKS]
    return [shape for shape in shapes if _fits(shape, limits)]


def _fits(shape: StepShape, limits: Limits) -> bool:
    ends = [new + cached for new, cached in zip(shape.new_tokens, shape.cached_tokens, strict=True)]
    blocks = sum(-(-end // limits.block_tokens) for end in ends)
    return (
        sum(shape.new_tokens) <= limits.max_step_tokens
        and len(ends) <= limits.max_num_seqs
        and max(ends) < limits.max_context
        and blocks <= limits.num_blocks
    )


def measure_steps(
    core: EngineCore, shapes: Sequence[StepShape], *, repeats: int = 5, progress: Callable[[str], None] = lambda _: None
) -> list[float]:
    """`time_steps` of an engine that serves nobody yet."""
    if not core.idle:
        raise ConfigError("steps can only be measured while no request runs")
    limits, vocab_size = core.scheduler.limits, core.facts.vocab_size
    return time_steps(core.executor, limits.block_tokens, vocab_size, shapes, repeats=repeats, progress=progress)


def time_steps(
    executor: Executor,
    block_tokens: int,
    vocab_size: int,
    shapes: Sequence[StepShape],
    *,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> list[float]:
    """Median seconds of each shape run `repeats` times, the shapes taking turns so that a slow moment of the machine hits all
    of them."""
    rng = random.Random(0)
    seconds: list[list[float]] = [[] for _ in shapes]
    for round_ in range(repeats + 1):
        progress(f"steps, round {round_} of {repeats}" if round_ else "steps, to warm up")
        for times, shape in zip(seconds, shapes, strict=True):
            took = _run(executor, shape, block_tokens, vocab_size, rng)
            if round_:
                times.append(took)
    return [statistics.median(times) for times in seconds]


def _run(executor: Executor, shape: StepShape, block_tokens: int, vocab_size: int, rng: random.Random) -> float:
    segments: list[Segment] = []
    block = 0
    for row, (new, cached) in enumerate(zip(shape.new_tokens, shape.cached_tokens, strict=True)):
        tokens = [0] * cached + [rng.randrange(vocab_size) for _ in range(new)]
        request = Request(f"timed-{row}", tokens, _SAMPLING, seed=row)
        count = -(-len(tokens) // block_tokens)
        request.blocks, request.row, request.num_computed = list(range(block, block + count)), row, cached
        block += count
        segments.append(Segment(request, cached, new, wants_sample=row < shape.num_samples))
    return executor.run(Batch(segments, predicted=None)).seconds
