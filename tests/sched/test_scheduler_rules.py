"""One rule at a time, on steps small enough to write down."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from ridgepoint.errors import ConfigError, RequestError
from ridgepoint.sched.budget import StepBudget
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.prefix import PrefixIndex, block_key, root_key
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, Segment, StepResult, StepShape


class Driver:
    """A scheduler, and steps whose every sampled token is 9."""

    def __init__(self, timer: Any = None, **limits: Any) -> None:
        usual = {
            "num_blocks": 100,
            "block_tokens": 4,
            "max_num_seqs": 4,
            "max_step_tokens": 16,
            "max_context": 200,
            "max_waiting": 10,
        }
        self.scheduler = Scheduler(Limits(**(usual | limits)), timer)
        self.now = 0.0

    def add(
        self,
        request_id: str,
        prompt: list[int] | int,
        max_tokens: int = 50,
        root: bytes = b"",
        whole_runs: tuple[int, ...] = (),
        **params: Any,
    ) -> Request:
        ids = [ord(request_id[0])] * prompt if isinstance(prompt, int) else prompt
        rules = SamplingParams(max_tokens=max_tokens, **params)
        request = Request(request_id, ids, rules, seed=0, root=root, whole_runs=whole_runs)
        self.scheduler.add(request)
        return request

    def next(self) -> Batch:
        self.now += 1.0
        batch = self.scheduler.next_batch(self.now)
        assert batch is not None
        self.scheduler.check()
        return batch

    def step(self) -> dict[str, tuple[int, int]]:
        """Runs one step; what it held: request id to (start, number of tokens)."""
        batch = self.next()
        sampled = sum(segment.wants_sample for segment in batch.segments)
        self.scheduler.commit(batch, StepResult([9] * sampled, 0.0))
        self.scheduler.check()
        return {segment.request.id: (segment.start, segment.num_tokens) for segment in batch.segments}


def test_readers_first_then_arrival_and_chunks_end_on_blocks() -> None:
    driver = Driver()
    driver.add("a", 3)
    assert driver.step() == {"a": (0, 3)}
    driver.add("b", 30)
    driver.add("c", 5)
    assert driver.step() == {"a": (3, 1), "b": (0, 12), "c": (0, 3)}  # of 15 left, b takes whole blocks
    assert driver.step() == {"a": (4, 1), "b": (12, 12), "c": (3, 2)}
    assert driver.step() == {"a": (5, 1), "c": (5, 1), "b": (24, 6)}
    assert driver.step() == {"a": (6, 1), "b": (30, 1), "c": (6, 1)}


def test_nothing_in_flight_is_no_batch() -> None:
    driver = Driver()
    assert driver.scheduler.next_batch(0.0) is None
    driver.add("a", 3, max_tokens=1)
    assert driver.step() == {"a": (0, 3)}
    assert driver.scheduler.idle and driver.scheduler.next_batch(0.0) is None


def test_a_sample_is_wanted_only_at_the_last_known_token() -> None:
    driver = Driver()
    driver.add("a", 20)
    first = driver.next()
    assert [segment.wants_sample for segment in first.segments] == [False]
    assert driver.scheduler.commit(first, StepResult([], 0.0)) == []
    second = driver.next()
    assert [segment.wants_sample for segment in second.segments] == [True]
    (progress,) = driver.scheduler.commit(second, StepResult([7], 0.0, ["entry"]))
    assert (progress.token_id, progress.logprobs, progress.finish_reason) == (7, "entry", None)


def test_a_prefix_is_shared_up_to_the_last_token() -> None:
    driver = Driver()
    driver.add("a", [1] * 12, max_tokens=1)
    driver.step()
    request = driver.add("b", [1] * 12, max_tokens=1)
    assert driver.step() == {"b": (8, 4)}  # the block with the last token is computed again: its logits are wanted
    assert request.cached_tokens == 8
    driver.add("c", [1] * 13, max_tokens=1)
    assert driver.step() == {"c": (12, 1)}
    driver.add("d", [1] * 13, max_tokens=1, root=b"another tenant")
    assert driver.step() == {"d": (0, 13)}
    assert driver.scheduler.prefix_query_tokens_total == 12 + 12 + 13 + 13
    assert driver.scheduler.prefix_hit_tokens_total == 8 + 12


def test_blocks_are_shared_only_in_the_form_they_were_computed_in() -> None:
    """Blocks of 4, whole runs of 8: of 21 tokens the first 16 have the one form, of 29 the first 24."""
    driver = Driver(max_step_tokens=64)
    for name, prompt, cached in (("a", 21, 0), ("b", 29, 16), ("c", 21, 20), ("d", 30, 28), ("e", 23, 20), ("f", 6, 0)):
        request = driver.add(name, [1] * prompt, max_tokens=1, whole_runs=(8,))
        assert driver.step() == {name: (cached, prompt - cached)}
        assert request.cached_tokens == cached
    driver.add("g", [1] * 30, max_tokens=1)
    assert driver.step() == {"g": (24, 6)}  # who has but one form has the first


def test_forms_that_change_within_a_block_at_different_tokens_are_kept_apart() -> None:
    """Blocks of 4 and whole runs of 1, 3 and both: of 9 and 10 tokens the last run ends within the third block."""
    for runs in ((1,), (3,), (1, 3)):
        keys = {}
        for prompt in (8, 9, 10, 11, 12):
            request = Request("r", [1] * prompt, SamplingParams(max_tokens=20), seed=0, whole_runs=runs)
            request.tokens += [1] * (20 - prompt)
            keys[prompt] = request.block_keys(5, 4)
        for one, other in itertools.combinations(keys, 2):
            ends = [min(one // run * run, other // run * run) for run in runs if one // run != other // run]
            shared = min(ends) // 4 if ends else 5
            assert keys[one][:shared] == keys[other][:shared]
            assert not set(keys[one][shared:]) & set(keys[other][shared:])


def test_who_was_preempted_finds_its_own_blocks_in_both_forms() -> None:
    driver = Driver(num_blocks=7, max_context=24, max_step_tokens=24)
    driver.add("a", [1] * 10, whole_runs=(8,), max_tokens=14)
    late = driver.add("b", [2] * 5, whole_runs=(4,), max_tokens=9)
    while not late.num_preemptions:
        driver.step()
    driver.scheduler.cancel("a")
    (segment,) = driver.next().segments
    assert segment.request is late and segment.start == (len(late.tokens) - 1) // 4 * 4 > late.num_prompt


def test_who_needs_a_block_in_the_making_waits_for_it() -> None:
    driver = Driver()
    driver.add("a", [1] * 24)
    driver.add("b", [1] * 22)
    driver.add("c", [2] * 3)
    assert driver.step() == {"a": (0, 16)}
    assert driver.step() == {"a": (16, 8), "c": (0, 3)}  # b waits, c need not
    assert driver.step() == {"a": (24, 1), "b": (20, 2), "c": (3, 1)}


def test_the_wait_ends_when_the_maker_goes() -> None:
    driver = Driver()
    driver.add("a", [1] * 40)
    driver.add("b", [1] * 30)
    driver.step()
    driver.scheduler.cancel("a")
    assert driver.step() == {"b": (16, 14)}


def test_blocks_of_the_finished_are_evicted_oldest_first_tail_before_head() -> None:
    driver = Driver(num_blocks=6, max_context=24)
    driver.add("a", [1] * 9, max_tokens=1)
    driver.step()
    driver.add("b", [2] * 9, max_tokens=1)
    driver.step()
    assert driver.scheduler.pool.num_evictable == 4
    driver.add("c", [3] * 12, max_tokens=1)  # takes the two free ones, then a's tail
    driver.step()
    index, root = driver.scheduler.pool.index, b""
    first_a = block_key(root, [1] * 4)
    first_b = block_key(root, [2] * 4)
    assert first_a in index and block_key(first_a, [1] * 4) not in index
    assert first_b in index and block_key(first_b, [2] * 4) in index


def test_the_latest_arrival_gives_way_and_comes_back() -> None:
    driver = Driver(num_blocks=7, max_context=28)
    a = driver.add("a", 11, max_tokens=12)
    driver.step()
    b = driver.add("b", 7, max_tokens=12)
    driver.step()
    while b.row >= 0:
        driver.step()
    assert driver.scheduler.preemptions_total == 1 and b.num_computed == 0 and len(b.tokens) > b.num_prompt
    assert a.row >= 0
    kept = list(b.tokens)
    while not driver.scheduler.idle:
        driver.step()
    assert b.tokens[: len(kept)] == kept and b.num_output == 12 and b.num_preemptions == 1
    assert driver.scheduler.pool.num_held == 0


def test_a_step_forgets_whom_it_robbed() -> None:
    """A reader that boarded loses its seat in the same step when an earlier prompt takes its blocks."""
    driver = Driver(num_blocks=11, max_context=48, max_step_tokens=8)
    driver.add("old", 44, max_tokens=1)
    for _ in range(5):
        driver.step()
    young = driver.add("young", 1, max_tokens=20)
    driver.scheduler._seat(young, [], driver.now)  # which admission would not do: the old prompt needs every block
    assert driver.step() == {"old": (40, 4)}
    assert young.num_preemptions == 1 and driver.scheduler.waiting == [young]
    while not driver.scheduler.idle:
        driver.step()
    assert young.num_output == 20


def test_a_newcomer_does_not_take_blocks_that_are_promised() -> None:
    driver = Driver(num_blocks=10, max_context=40, max_step_tokens=8)
    driver.add("a", 30, max_tokens=4)
    driver.step()
    driver.add("b", 8, max_tokens=4)
    while driver.scheduler.running and driver.scheduler.running[0].id == "a":
        assert "b" not in driver.step()
    assert driver.scheduler.preemptions_total == 0


def test_cancel_frees_at_once_wherever_the_request_is() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add("a", 10)
    driver.add("b", 10)
    driver.step()
    assert driver.scheduler.pool.num_held == 3
    assert driver.scheduler.cancel("a") is not None and driver.scheduler.pool.num_held == 0
    assert driver.scheduler.cancel("b") is not None and driver.scheduler.idle
    assert driver.scheduler.cancel("a") is None and driver.scheduler.cancel("never") is None


def test_cancel_while_the_step_runs() -> None:
    driver = Driver()
    driver.add("a", 5)
    driver.add("b", 6)
    batch = driver.next()
    driver.scheduler.cancel("a")
    (progress,) = driver.scheduler.commit(batch, StepResult([7, 8], 0.0))
    assert (progress.request.id, progress.token_id) == ("b", 8)
    driver.scheduler.check()


@pytest.mark.parametrize(
    ("params", "tokens", "made", "reason"),
    [
        ({"max_tokens": 2}, [5, 5, 5], 2, "length"),
        ({"max_tokens": 9}, [5, 99, 5], 2, "stop"),
        ({"max_tokens": 9, "stop_token_ids": (6,)}, [5, 5, 6], 3, "stop"),
        ({"max_tokens": 3, "ignore_eos": True}, [99, 99, 99], 3, "length"),
        ({"max_tokens": 2}, [5, 99], 2, "stop"),
        ({"max_tokens": 9}, [5, -1], 1, "error"),
    ],
)
def test_ends(params: dict[str, Any], tokens: list[int], made: int, reason: str) -> None:
    scheduler = Driver().scheduler
    request = Request("a", [1], SamplingParams(**params), seed=0, eos_ids=(99,))
    scheduler.add(request)
    for token in tokens:
        batch = scheduler.next_batch(0.0)
        if batch is None:
            break
        scheduler.commit(batch, StepResult([token], 0.0))
    assert (request.num_output, request.finish_reason) == (made, reason)
    assert scheduler.idle and scheduler.pool.num_held == 0


def test_refusals_say_what_would_fit() -> None:
    driver = Driver(num_blocks=4, max_context=200, max_num_seqs=1, max_waiting=1)  # 16 tokens of KV, 17 in all
    with pytest.raises(RequestError, match="no tokens"):
        driver.add("a", [])
    with pytest.raises(RequestError, match="may have 17") as long:
        driver.add("a", 17, max_tokens=1)
    assert (long.value.status, long.value.code) == (400, "context_length_exceeded")
    with pytest.raises(RequestError, match="at most 7"):
        driver.add("a", 10, max_tokens=8)
    driver.add("a", 10, max_tokens=7)
    driver.add("b", 10, max_tokens=7)
    with pytest.raises(RequestError, match="already in flight"):
        driver.add("b", 1, max_tokens=1)
    with pytest.raises(RequestError) as full:
        driver.add("c", 1, max_tokens=1)
    assert full.value.status == 429
    while not driver.scheduler.idle:
        driver.step()


@dataclass
class Cost:
    seconds: float


class TokenTimer:
    """A millisecond a token, and another for each cached block of four."""

    def seconds(self, shape: StepShape) -> Cost:
        return Cost(0.001 * (sum(shape.new_tokens) + sum(shape.cached_tokens) // 4))


class PlainTimer:
    """A millisecond a token."""

    def seconds(self, shape: StepShape) -> Cost:
        return Cost(0.001 * sum(shape.new_tokens))


def test_a_timetable_fills_steps_by_predicted_seconds() -> None:
    driver = Driver(TokenTimer(), step_budget_s=0.010, max_step_tokens=1000, block_tokens=4)
    driver.add("a", 30)
    batch = driver.next()
    assert [(s.start, s.num_tokens) for s in batch.segments] == [(0, 8)]  # 10 fit, 8 are whole blocks
    assert batch.predicted is not None and batch.predicted.seconds == pytest.approx(0.008)
    driver.scheduler.commit(batch, StepResult([], 0.0))
    assert driver.step() == {"a": (8, 8)}  # 8 new and 2 blocks read: 10 ms
    assert driver.step() == {"a": (16, 4)}  # 6 fit
    assert driver.step() == {"a": (20, 4)}
    assert driver.step() == {"a": (24, 4)}
    driver.add("b", 3)
    assert driver.step() == {"a": (28, 2), "b": (0, 1)}  # 2 new and 7 blocks read leave room for one


def test_the_oldest_prompt_moves_even_when_readers_fill_the_interval() -> None:
    driver = Driver(PlainTimer(), step_budget_s=0.004, max_step_tokens=1000)
    for name in "abc":
        driver.add(name, 1)
    driver.step()
    driver.add("d", 12)
    assert driver.step()["d"] == (0, 4)  # 3 readers and one block of d: late by 3 ms, not starved
    assert driver.step()["d"] == (4, 4)
    assert driver.step()["d"] == (8, 4)
    assert driver.step()["d"] == (12, 1)


def test_no_more_readers_board_than_the_interval_carries() -> None:
    driver = Driver(PlainTimer(), step_budget_s=0.003, max_step_tokens=1000, max_num_seqs=10)
    for name in "abcdef":
        driver.add(name, 1)
    assert set(driver.step()) == {"a", "b", "c"}
    assert set(driver.step()) == {"a", "b", "c"}
    driver.scheduler.cancel("a")
    assert set(driver.step()) == {"b", "c", "d"}


def test_prompts_are_bounded_beside_readers_only() -> None:
    driver = Driver(max_step_tokens=40, mixed_prompt_tokens=8)
    driver.add("a", 30)
    assert driver.step() == {"a": (0, 30)}  # nobody waits for this step
    driver.add("b", 21)
    driver.add("c", 5)
    assert driver.step() == {"a": (30, 1), "b": (0, 8)}
    assert driver.step() == {"a": (31, 1), "b": (8, 8)}
    driver.scheduler.cancel("a")
    assert driver.step() == {"b": (16, 5), "c": (0, 5)}
    assert driver.step() == {"b": (21, 1), "c": (5, 1)}


def test_a_preempted_prompt_gives_its_room_beside_readers_back() -> None:
    driver = Driver()
    budget = StepBudget(40, None, None)
    reader, prompt = driver.add("r", 1), driver.add("p", 20)
    budget.board(Segment(reader, 0, 1, True))
    budget.readers_boarded(8)
    assert budget.largest_chunk(0, 20) == 8
    budget.board_prompt(Segment(prompt, 0, 6, False))
    assert budget.num_tokens_left == 2
    budget.unboard(prompt.arrival)
    assert budget.num_tokens_left == 8


def test_limits_are_validated() -> None:
    good = {
        "num_blocks": 1,
        "block_tokens": 1,
        "max_num_seqs": 1,
        "max_step_tokens": 1,
        "max_context": 1,
        "max_waiting": 0,
    }
    Limits(**good)
    for name in ("num_blocks", "block_tokens", "max_num_seqs", "max_context"):
        with pytest.raises(ConfigError, match=name):
            Limits(**(good | {name: 0}))
    with pytest.raises(ConfigError, match="max_step_tokens"):
        Limits(**(good | {"max_num_seqs": 2}))
    with pytest.raises(ConfigError, match="mixed_prompt_tokens"):
        Limits(**good, mixed_prompt_tokens=0)
    with pytest.raises(ConfigError, match="timer"):
        Scheduler(Limits(**good, step_budget_s=1.0))


def test_keys_depend_on_everything_before_them() -> None:
    root = root_key(model="m", layout="l", dtype="d", tenant=b"t")
    assert root != root_key(model="m", layout="l", dtype="d", tenant=b"u")
    assert root_key(model="ab", layout="c", dtype="d", tenant=b"") != root_key(
        model="a", layout="bc", dtype="d", tenant=b""
    )
    one = block_key(root, [1, 2])
    assert block_key(one, [3]) != block_key(root, [3]) != block_key(root, [3, 0])
    index = PrefixIndex()
    assert index.insert(one, 5) and not index.insert(one, 6)
    assert index.match([one, root]) == [5] and index.match([root, one]) == []
    index.remove(5)
    assert len(index) == 0 and one not in index
    index.check()
