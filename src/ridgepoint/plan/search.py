"""The search: pools x layouts x batch x chunk x step interval x draft length x prefill:decode ratio, priced, filtered by the goal
and ranked.

`plan(question) -> Plan` is the whole of `ridgepoint plan`. Progress is reported through a callback, because a mixed-hardware
search takes seconds; everything it decides is in `sweep`, `pair` and `choose`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ridgepoint.cost.drafting import Drafter
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_seq, usable_bytes, weight_bytes
from ridgepoint.errors import ConfigError, PlanError
from ridgepoint.plan.choose import Change, Choice, choose, what_would_change
from ridgepoint.plan.layouts import Residence, residences
from ridgepoint.plan.named import NamedModel
from ridgepoint.plan.pair import pair_sides
from ridgepoint.plan.points import Points, concat
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.sides import DecodeSide, PrefillSide, sweep_decode, sweep_prefill
from ridgepoint.plan.sweep import instance_limit, lay_out, sweep_together
from ridgepoint.plan.timetable import checked_intervals, intervals_worth_searching
from ridgepoint.plan.workload import Goal, Workload
from ridgepoint.units import si

Progress = Callable[[float, str], None]

MOST_SEARCHES = 320  # sixteen kinds of hardware, each beside each: about ten seconds and a gigabyte
DRAFT_LENGTHS = (0, 1, 2, 3, 4, 6, 8)  # searched when an acceptance is known and no length is asked for


@dataclass(frozen=True, kw_only=True)
class Question:
    """A model, the pools that may serve it, the traffic and the goal."""

    model: NamedModel
    pools: tuple[Pool, ...]
    workload: Workload
    goal: Goal
    disaggregate: bool = True
    intervals_s: tuple[float, ...] | None = (
        None  # None: free-running steps and a grid of timetables; else these timetables alone
    )
    drafter: Drafter | None = None  # with draft tokens and no drafter, they are looked up in the text and cost nothing
    draft_lengths: tuple[int, ...] = ()  # to choose from, instead of the workload's own

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("a plan needs at least one kind of hardware", hint="--hardware h200")
        if self.drafter is not None and not any(self.lengths):
            raise ConfigError(f"a drafter ({self.drafter.name}) without an acceptance", hint="--acceptance 0.7")
        length = self.workload.input_tokens + self.workload.written_tokens
        most = self.model.spec.max_context
        if max(length, self.goal.context or 0) > most:
            raise ConfigError(
                f"{self.model.name} ends at {most:,} tokens of context, the workload needs {max(length, self.goal.context or 0):,}",
                hint="shorten the input or output, or choose a model with a longer context",
            )
        for role in ("prefill", "decode"):
            if not any(pool.role in ("any", role) for pool in self.pools):
                raise ConfigError(
                    f"no hardware may {role}", hint=f"--{role}-hardware NAME, or --hardware NAME for both"
                )

        searches = self.num_searches
        if searches > MOST_SEARCHES:
            raise ConfigError(
                f"{len(self.pools)} pools and {len(self.lengths)} draft lengths make {searches:,} searches; allowed: at most {MOST_SEARCHES}",
                hint="fewer formats or kinds of hardware in one question, --no-disaggregate, or one --draft-tokens",
            )

    @property
    def num_searches(self) -> int:
        """Pools by themselves and, where pools may be paired, every one that prefills with every one that decodes; of each draft length."""
        prefill, decode = (sum(pool.role in ("any", role) for pool in self.pools) for role in ("prefill", "decode"))
        return len(self.lengths) * (len(self.pools) + (prefill * decode if self.disaggregate else 0))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Draft lengths to price."""
        return self.draft_lengths or (self.workload.draft_tokens,)

    def drafting(self, tokens: int) -> Question:
        """The same question with one draft length; nobody drafts none."""
        workload = replace(self.workload, draft_tokens=tokens)
        return replace(self, workload=workload, draft_lengths=(), drafter=self.drafter if tokens else None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer; `points` is everything that was priced, for charts and further questions. `question` drafts the chosen length,
    `drafts` are the best rows of each length that was searched."""

    question: Question
    choice: Choice
    drafts: tuple[dict[str, float], ...]
    changes: tuple[Change, ...]
    points: Points
    seconds: float


def _quiet(_done: float, _what: str) -> None:
    pass


def plan(question: Question, progress: Progress = _quiet) -> Plan:
    started = time.perf_counter()
    tables = _tables(question, progress)
    points, goal = concat(list(tables.values())), question.goal
    choice = choose(points, goal)
    changes = what_would_change(points, goal, choice.chosen, question.pools) if choice.feasible else ()
    drafts = tuple(choose(table, goal).chosen for table in tables.values()) if len(tables) > 1 else ()
    return Plan(
        question=question.drafting(int(choice.chosen["draft"])), choice=choice, drafts=drafts, changes=changes, points=points,
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def _tables(question: Question, progress: Progress) -> dict[int, Points]:
    """Every row by draft length; a length whose drafter leaves no room has none, unless there is no other."""
    tables: dict[int, Points] = {}
    refused: PlanError | None = None
    for done, tokens in enumerate(question.lengths):

        def within(frac: float, what: str, done: int = done) -> None:
            progress((done + frac) / len(question.lengths), what)

        try:
            tables[tokens] = price_all(question.drafting(tokens), within)
        except PlanError as error:
            refused = error
    if not tables and refused is not None:
        raise refused
    return tables


def price_all(question: Question, progress: Progress = _quiet) -> Points:
    """Every row there is with the workload's own draft length. Raises PlanError when the model fits nowhere."""
    spec, workload, goal = question.model.spec, question.workload, question.goal
    jobs = _jobs(question)
    if question.intervals_s is None:
        intervals = intervals_worth_searching(workload, goal)
    else:
        intervals = checked_intervals(question.intervals_s)
    parts: list[Points] = []
    prefills: list[PrefillSide] = []
    decodes: list[DecodeSide] = []
    for done, (kind, index, residence) in enumerate(jobs):
        pool = question.pools[index]
        where = f", {residence.text}" if residence.text else ""
        progress(done / (len(jobs) + 1), f"{kind} on {pool.describe()}{where}")
        side = lay_out(spec, pool, workload, goal, role=kind, residence=residence, drafter=question.drafter)
        if not len(side.degrees):
            continue
        if kind == "together":
            if question.intervals_s is None:
                parts.append(sweep_together(side, index, workload))
            parts.append(sweep_together(side, index, workload, intervals))
        elif kind == "decode":
            decodes.append(sweep_decode(side, index, workload, None if question.intervals_s is None else intervals))
        else:
            prefills.append(sweep_prefill(side, index, workload))
    pairs = [(p, d) for p in prefills for d in decodes if _can_pair(question, p.pool, d.pool)]
    for done, (p, d) in enumerate(pairs):
        names = [question.pools[side.pool].chip.id for side in (p, d)]
        progress((len(jobs) + done / len(pairs)) / (len(jobs) + 1), f"pairing {names[0]} with {names[1]}")
        if len(p.service_s) and len(d.step_s):
            parts.append(pair_sides(spec, p, d, question.pools, workload, goal))
    progress(1.0, "ranking")
    if not any(len(part) for part in parts):
        raise _nothing_fits(question)
    return concat(parts)


def _jobs(question: Question) -> list[tuple[str, int, Residence]]:
    """What to price. Prompts alone are bound by compute, so a pool that only prefills lies in its first residence."""
    jobs = []
    for index, pool in enumerate(question.pools):
        places = residences(pool.chip)
        if pool.role == "any":
            jobs += [("together", index, place) for place in places]
        if question.disaggregate and pool.role in ("any", "prefill"):
            jobs.append(("prefill", index, places[0]))
        if question.disaggregate and pool.role in ("any", "decode"):
            jobs += [("decode", index, place) for place in places]
    return jobs


def _can_pair(question: Question, prefill: int, decode: int) -> bool:
    """KV is handed over as it is: both sides keep it in one format."""
    p, d = question.pools[prefill], question.pools[decode]
    chips = [p.chip.spec_scaleout_bytes_per_s, d.chip.spec_scaleout_bytes_per_s]
    return p.precision.kv == d.precision.kv and all(chip is not None for chip in chips)


def _nothing_fits(question: Question) -> PlanError:
    pool = max(question.pools, key=lambda p: (p.count or 64) * (p.chip.spec_memory_bytes or 0))
    limit = instance_limit(pool, question.goal)
    needed, usable = weight_bytes(question.model.spec, pool.precision), usable_bytes(pool.chip, Layout())
    context = question.goal.context or int(question.workload.decode_context)
    kv = float(kv_bytes_per_seq(question.model.spec, float(context), pool.precision.kv))
    return PlanError(
        f"{question.model.name} in {pool.precision_name} needs {si(needed, 'B')} for weights and {si(kv, 'B')} for one request of {context:,} tokens; "
        f"{limit} x {pool.chip.id} ({si(usable, 'B')} usable each) in one instance cannot hold them",
        hint=f"at least {int((needed + kv) / usable) + 1} chips, a narrower precision, or a shorter context",
    )
