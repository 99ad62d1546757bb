"""The engine's heart: messages in, steps, messages out. The loop that drives it is `run`, and fits one screen.

Turns `Submit` into scheduler requests, those with a grammar once it is compiled, and committed steps into `Output`s. Knows
neither tensors (the executor does) nor sockets (`link` does). Invariant: every submission gets exactly one last word, an `Output` with a `finish_reason` or a
`Refused`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ridgepoint.cost.following import FollowingTimer
from ridgepoint.cost.timer import TimedStep
from ridgepoint.engine.checks import check_ending, check_ids
from ridgepoint.engine.compiling import Compiling, CompilingQueue
from ridgepoint.engine.constraint import Constraint
from ridgepoint.engine.energy import StepEnergy
from ridgepoint.engine.grammar import Grammars, refusal
from ridgepoint.engine.ledger import StepLedger
from ridgepoint.engine.protocol import (
    Cancel,
    Drain,
    FromEngine,
    Output,
    Ready,
    Refused,
    Shutdown,
    StepReport,
    Stopped,
    Submit,
    ToEngine,
)
from ridgepoint.engine.startup import Startup
from ridgepoint.errors import RequestError
from ridgepoint.sched.ahead import InTurn, Pace
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Scheduler
from ridgepoint.sched.step import Batch, Clock, Executor, Progress, StepResult

REPORT_EVERY_S = 0.1


class MonotonicClock:
    def now(self) -> float:
        return time.monotonic()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the core must know of a model. `root_of` gives the prefix chain's root for a tenant's salt; `whole_runs` is
    `Request`'s."""

    name: str
    vocab_size: int
    max_context: int
    eos_ids: tuple[int, ...]
    root_of: Callable[[bytes], bytes]
    whole_runs: tuple[int, ...] = ()


class Link(Protocol):
    """The other end: a socket, or a list in tests."""

    def receive(self, wait: bool) -> list[ToEngine]:
        """Messages that arrived; with `wait`, blocks until there is one."""
        ...

    def send(self, messages: list[FromEngine]) -> None: ...


def run(core: EngineCore, link: Link) -> None:
    """Serve until told to stop."""
    while not core.stopped:
        for message in link.receive(wait=core.idle):
            core.handle(message)
        core.step()
        link.send(core.take_outbox())


class EngineCore:
    """`step` is the whole engine; the rest is bookkeeping for those who watch."""

    def __init__(
        self,
        facts: ModelFacts,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock | None = None,
        pace: Pace | None = None,
        startup: Startup | None = None,
        joules: Callable[[], float] | None = None,
        follower: FollowingTimer | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """`follower`, the scheduler's timer where that follows the machine, is told what each step took. Without `grammars`
        no output can be constrained."""
        self.facts = facts
        self.scheduler = scheduler
        self.executor = executor
        self.pace = pace or InTurn(executor)
        self.clock = clock or MonotonicClock()
        self.startup = startup or Startup()
        self._energy = None if joules is None else StepEnergy(joules)
        self.stopped = False
        self._draining = False
        self._outbox: list[FromEngine] = []
        self._prompt_logprobs: dict[str, list[Any]] = {}
        self._unstarted: set[str] = set()  # requests whose first output is still to come
        self._steps = 0
        self._reported_s = float("-inf")
        self._reported_idle = True
        self._ledger = StepLedger()
        self._follower = follower
        self._grammars = grammars
        self._compiling = CompilingQueue()
        self._last: tuple[Batch, StepResult] | None = None

    def step(self) -> None:
        if self._compiling:
            self._admit_compiled()
        batch = self.scheduler.next_batch(self.clock.now())
        if self._energy is not None and self._reported_idle and batch is not None:
            self._energy.resume()
        for done, result in self.pace.push(batch):  # this step, or the one before it
            for progress in self.scheduler.commit(done, result):
                self._publish(progress)
            self._steps += 1
            self._last = (done, result)
            self._ledger.enter(done, result)
            if self._follower is not None and isinstance(done.predicted, TimedStep):
                self._follower.learn(done.predicted, result.seconds)
        self._report()
        if self._draining and self.idle:
            self._stop()

    @property
    def idle(self) -> bool:
        """Nothing to do until a message comes."""
        return self.scheduler.idle and not self.pace.in_flight and not self._compiling

    def ready(self, load_s: float) -> Ready:
        limits = self.scheduler.limits
        return Ready(
            model=self.facts.name, vocab_size=self.facts.vocab_size, max_context=limits.max_context,
            num_blocks=limits.num_blocks, block_tokens=limits.block_tokens, load_s=load_s,
            startup_s=self.startup.seconds, configurations=self.startup.configurations,
        )  # fmt: skip

    def take_outbox(self) -> list[FromEngine]:
        messages, self._outbox = self._outbox, []
        return messages

    # ------------------------------------------------------------ messages in

    def handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                try:
                    self._submit(message)
                except RequestError as error:
                    self._refuse(message.request_id, error)
            case Cancel(request_id=request_id) if self._compiling.cancel(request_id):
                self._outbox.append(Output(request_id=request_id, token_ids=[], finish_reason="cancelled"))
            case Cancel(request_id=request_id):
                request = self.scheduler.cancel(request_id)
                if request is not None:
                    self._forget(request)
                    self._outbox.append(Output(request_id=request_id, token_ids=[], finish_reason="cancelled"))
            case Drain():
                self._draining = True
            case Shutdown():
                self._stop()

    def _submit(self, message: Submit) -> None:
        if self._draining:
            raise RequestError("the server is shutting down", status=503, code="shutting_down")
        check_ids(message, self.facts.vocab_size)
        now = self.clock.now()
        if message.grammar is None:
            self._admit(message, now, None)
        else:
            if self._grammars is None:
                raise RequestError("this engine cannot constrain its output", param=message.grammar.param)
            check_ending(message)
            self._compiling.add(Compiling(message, now, self._grammars.compile(message.grammar)))

    def _admit_compiled(self) -> None:
        for one in self._compiling.take_ready(idle=self.scheduler.idle and not self.pace.in_flight):
            try:
                self._admit(one.submit, one.arrived_s, one.constraint.result())
            except RequestError as error:
                self._refuse(one.submit.request_id, error)

    def _admit(self, message: Submit, arrived_s: float, constraint: Constraint | None) -> None:
        seed = message.params.seed
        request = Request(
            message.request_id, message.prompt_ids, message.params,
            seed=secrets.randbits(63) if seed is None else seed,
            root=self.facts.root_of(message.salt), whole_runs=self.facts.whole_runs, eos_ids=self.facts.eos_ids, arrived_s=arrived_s,
            constraint=constraint,
        )  # fmt: skip
        self.scheduler.add(request)
        self._unstarted.add(request.id)

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._outbox.append(Stopped())

    # ------------------------------------------------------------ messages out

    def _refuse(self, request_id: str, error: RequestError) -> None:
        self._outbox.append(
            Refused(
                request_id=request_id, message=error.message, status=error.status, param=error.param, code=error.code,
                hint=error.hint,
            )
        )  # fmt: skip

    def _publish(self, progress: Progress) -> None:
        request = progress.request
        if progress.prompt_logprobs is not None:
            self._prompt_logprobs.setdefault(request.id, [None]).extend(progress.prompt_logprobs)
        if progress.finish_reason == "error":
            self._forget(request)
            failure = None if request.constraint is None else request.constraint.failure
            if failure is not None:
                self._refuse(request.id, refusal(request.constraint.param, failure))
            else:
                message = "the model's logits are not finite numbers"
                self._outbox.append(Output(request_id=request.id, token_ids=[], finish_reason="error", error=message))
        if progress.token_id is None:
            return
        token_ids = [progress.token_id]
        logprobs = None if progress.logprobs is None else [progress.logprobs]
        if request.id in self._unstarted:
            assert request.admitted_s is not None
            prompt_logprobs = self._prompt_logprobs.get(request.id)
            if prompt_logprobs is None and request.params.prompt_logprobs is not None:
                prompt_logprobs = [None]  # a prompt of one token has nothing to score
            self._outbox.append(
                Output(
                    request_id=request.id, token_ids=token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
                    cached_tokens=request.cached_tokens, queue_s=request.admitted_s - request.arrived_s,
                    seed=request.seed, finish_reason=progress.finish_reason,
                )
            )  # fmt: skip
            self._forget(request)
        else:
            self._outbox.append(
                Output(
                    request_id=request.id, token_ids=token_ids, logprobs=logprobs, finish_reason=progress.finish_reason
                )
            )

    def _forget(self, request: Request) -> None:
        self._unstarted.discard(request.id)
        self._prompt_logprobs.pop(request.id, None)

    def _report(self) -> None:
        now, idle = self.clock.now(), self.idle
        if idle:
            if self._reported_idle:
                return
        elif now - self._reported_s < REPORT_EVERY_S:
            self._reported_idle = False
            return
        self._reported_s, self._reported_idle = now, idle
        scheduler, pool = self.scheduler, self.scheduler.pool
        batch, result = self._last or (None, None)
        predicted = batch.predicted if batch else None
        per_step = self._energy.per_step(self._steps) if self._energy else None
        self._outbox.append(
            StepReport(
                step=self._steps,
                num_tokens=batch.num_tokens if batch else 0,
                num_seqs=len(batch.segments) if batch else 0,
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                used_blocks=pool.num_held,
                step_s=result.seconds if result else 0.0,
                predicted_s=predicted.calibrated_s if isinstance(predicted, TimedStep) else None,
                followed_s=predicted.seconds if predicted else None,
                machine_speed=self._follower.speed.relative if self._follower else None,
                totals=self._ledger.totals(),
                joules_per_step=per_step,
                joules_total=self._energy.total if self._energy else None,
                preemptions_total=scheduler.preemptions_total,
                prefix_hit_tokens_total=scheduler.prefix_hit_tokens_total,
                prefix_query_tokens_total=scheduler.prefix_query_tokens_total,
                computed_tokens_total=scheduler.computed_tokens_total,
                masks_total=self._grammars.totals.masks if self._grammars else None,
                masks_s_total=self._grammars.totals.seconds if self._grammars else None,
            )
        )
