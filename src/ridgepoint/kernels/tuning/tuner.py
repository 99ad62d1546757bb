"""Measures the configurations worth trying on the GPU at hand and keeps the best of each problem: what `table` then saves.

A problem is a key of the tables with calls that run it and rounds of candidates, each round around the best so far; the
kernels' own folders (`*/tunable.py`) make them. All kinds of kernels are tuned by the loop below. A candidate that the GPU
refuses, or that computes something else than the first, is left out by name. Time is given by the caller's `measure` and
`clock`, which is how this runs without a GPU; a budget that is spent leaves the rest for the next start.

Kernels whose warps have roles have not run on a GPU yet, and what goes wrong with their barriers there would stop the device for
good and not just differ: they are tried where the environment says RIDGEPOINT_TRY_ROLES=1, or names their operators (`paged_prompt,
experts`), as benchmarks/gpu_suite.py does in processes that may hang.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle

import torch
import triton

from ridgepoint.kernels.triton_call import INTERPRETED
from ridgepoint.kernels.tuning import Choice, Config, pinned
from ridgepoint.kernels.tuning.configs import has_roles

Call = Callable[[], torch.Tensor]
Measure = Callable[[Sequence[Call]], float]
Announce = Callable[[str], None]

AGREEMENT = 1e-2  # relative difference that two candidates may have: the order of sums, rounded to bf16
MOST = 6  # candidates of a round that are timed
MEASURE_S = 0.02  # of replays, for each candidate
COMPILERS = 8  # threads: the compiler's passes and assembler let go of Python's lock


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What to choose for: a key of the tables, and how to try a configuration on it.

    `calls` makes equal calls on unlike operands, together larger than the cache if there are enough; made when its turn comes.
    `rounds` turn the best configuration so far into the ones to try beside it."""

    op: str
    kind: str
    shape: tuple[int, ...]
    size: float  # it is measured at
    up_to: float  # and then holds for
    estimate: Config
    rounds: tuple[Callable[[Config], Sequence[Config]], ...]
    calls: Callable[[], Sequence[Call]]

    @property
    def key(self) -> tuple[object, ...]:
        return self.op, self.kind, self.up_to, self.shape

    def __str__(self) -> str:
        return f"{self.op} {self.kind} {'x'.join(map(str, self.shape))} at {self.size:g}"


@dataclass
class Outcome:
    choices: list[Choice] = field(default_factory=list)
    num_left: int = 0  # problems that the budget had no time for
    seconds: float = 0.0


def tune(
    problems: Sequence[Problem],
    *,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = float("inf"),
    announce: Announce = print,
    progress: Announce = lambda line: None,
) -> Outcome:
    """A choice for each problem, in order, until the budget is spent. A problem that was begun is finished. `announce` is told
    what is left out and why, `progress` every choice."""
    outcome, started_s = Outcome(), clock()
    for place, problem in enumerate(problems):
        if clock() - started_s >= budget_s:
            outcome.num_left = len(problems) - place
            break
        choice = best_of(problem, measure or measure_on_gpu, announce)
        if choice is not None:
            outcome.choices.append(choice)
            progress(f"tuned {problem}: {choice.figure}, {choice.config}")
    outcome.seconds = clock() - started_s
    return outcome


@torch.inference_mode()
def best_of(problem: Problem, measure: Measure, announce: Announce) -> Choice | None:
    """None where not even the estimate runs."""
    calls = problem.calls()
    trial = _Trial(problem, calls, measure, announce)
    for candidates in problem.rounds:
        trial.round(candidates(problem.estimate if trial.best is None else trial.best[1]))
    if trial.best is None:
        return None
    seconds, config = trial.best
    figure = f"measure_s {seconds:.3e} at {problem.size:g}, of {len(trial.seconds)}"
    return Choice(
        op=problem.op, kind=problem.kind, up_to=problem.up_to, shape=problem.shape, config=config, figure=figure
    )


def may_try_roles(op: str) -> bool:
    said = os.environ.get("RIDGEPOINT_TRY_ROLES", "")
    return said == "1" or op in said.split(",")


class _Trial:
    """The candidates of one problem, each tried once."""

    def __init__(self, problem: Problem, calls: Sequence[Call], measure: Measure, announce: Announce) -> None:
        self._problem, self._calls, self._measure, self._announce = problem, calls, measure, announce
        self.seconds: dict[Config, float] = {}
        self._want: torch.Tensor | None = None

    @property
    def best(self) -> tuple[float, Config] | None:
        """The fastest; of equals the one tried first."""
        config = min(self.seconds, key=lambda c: self.seconds[c], default=None)
        return None if config is None else (self.seconds[config], config)

    def round(self, candidates: Sequence[Config]) -> None:
        tries_roles = may_try_roles(self._problem.op)
        fresh = [c for c in dict.fromkeys(candidates) if c not in self.seconds and (tries_roles or not has_roles(c))]
        compile_together([lambda c=c: self._run(c) for c in fresh])  # type: ignore[misc]
        for config in fresh:
            why = self._try(config)
            if why is not None:
                self._announce(f"left out of {self._problem}: {config}: {why}")

    def _run(self, config: Config) -> torch.Tensor:
        with pinned(self._problem.op, config):
            return self._calls[0]()

    def _try(self, config: Config) -> str | None:
        """Time it; or why not."""
        try:
            got = self._run(config).float()
        except triton.runtime.errors.TritonError as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if self._want is None:
            self._want = got
        difference = float((got - self._want).norm() / self._want.norm().clamp(min=1e-30))
        if not difference <= AGREEMENT:
            return f"its result differs from the first candidate's by {difference:.1e}; allowed: {AGREEMENT}"
        with pinned(self._problem.op, config):
            self.seconds[config] = self._measure(self._calls)
        return None


def compile_together(runs: Sequence[Call]) -> None:
    """Run each once, side by side, so that their kernels are compiled by the time they are tried. A GPU's only: the
    interpreter compiles nothing. What fails here fails again, and is told, when it is tried."""
    if INTERPRETED.value or not torch.cuda.is_available() or len(runs) < 2:
        return
    device = torch.cuda.current_device()

    def compile_one(run: Call, stream: torch.cuda.Stream) -> None:
        try:
            with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(stream):
                run()
        except triton.runtime.errors.TritonError:
            pass

    with ThreadPoolExecutor(min(COMPILERS, len(runs))) as pool:
        list(pool.map(compile_one, runs, cycle(_streams(device))))
    torch.cuda.synchronize()


@cache
def _streams(device: int) -> list[torch.cuda.Stream]:
    """Few, and the same ones for every round: what was allocated on a stream stays reserved for it."""
    return [torch.cuda.Stream(device) for _ in range(COMPILERS)]


def measure_on_gpu(calls: Sequence[Call]) -> float:
    """Median seconds of a call in replays of one graph that goes round all of them, so that launches cost what they cost in a
    captured step and no operand is in the cache because the last call used it."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < MEASURE_S:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return sorted(taken)[len(taken) // 2] / len(calls)


def measure_by_clock(calls: Sequence[Call], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call after another, for rehearsals without a GPU."""
    started_s = clock()
    for call in calls:
        call()
    return (clock() - started_s) / len(calls)


def buckets(sizes: Sequence[int], largest: int) -> list[tuple[int, float]]:
    """(size to measure at, size it then holds up to) for the wanted sizes below `largest` and for `largest`, whose bucket has
    no end: a ladder of few sizes, each standing for all between it and the one before."""
    ladder = sorted({size for size in sizes if size < largest} | {largest})
    return [(size, float(size)) for size in ladder[:-1]] + [(ladder[-1], float(1 << 30))]
