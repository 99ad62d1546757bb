"""The executor for devices that run behind the host, on a device that does not: the same tokens as in turn."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import EOS, VOCAB, tiny_decoder, tiny_engine

from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.device_executor import DeviceExecutor, device_executor
from ridgepoint.engine.device_sampler import (
    BANNED,
    DRAWN,
    GREEDY,
    MOST_TOP,
    NUM_COLUMNS,
    NUM_TOP,
    RULED,
    SEAT,
    DeviceSampler,
)  # fmt: skip
from ridgepoint.engine.llm import LLM
from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.engine.protocol import Output, Submit
from ridgepoint.engine.startup import Startup
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.sample import IN_PROMPT, IS_STOP, DeviceShaping, Shaping, choose, choose_on_device
from ridgepoint.models.captured import CapturedStep, ladder
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache
from ridgepoint.models.staging import Staging
from ridgepoint.models.step import CapturedOrEager, EagerStep
from ridgepoint.sched.ahead import OneAhead
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Scheduler

BLOCK = 4


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return tiny_decoder(torch.float64)  # so that a row's bits hardly depend on its company


def ahead(
    decoder: Decoder, *, captured: bool, max_num_seqs: int = 8, num_blocks: int = 200, **options: Any
) -> EngineCore:
    """A tiny engine whose executor is replaced by one that runs ahead, with graphs or without."""
    core = tiny_engine(decoder, max_num_seqs=max_num_seqs, num_blocks=num_blocks, **options)
    limits = core.scheduler.limits
    cache = KVCache(decoder.spec, num_blocks + 1, BLOCK, torch.float64)
    staging = Staging(
        max_tokens=limits.max_step_tokens, max_seqs=max_num_seqs, max_blocks_per_seq=-(-limits.max_context // BLOCK),
        num_columns=NUM_COLUMNS, device=torch.device("cpu"),
    )  # fmt: skip
    sampler = DeviceSampler(staging.columns, decoder.spec.vocab_size)
    step: EagerStep | CapturedOrEager = EagerStep(decoder, cache, sampler)
    if captured:
        graphs = CapturedStep(
            decoder, cache, staging, sampler, sizes=ladder(max_num_seqs), scratch_block=num_blocks,
            max_blocks_per_seq=-(-limits.max_context // BLOCK), capture=lambda body: body,
        )  # fmt: skip
        step = CapturedOrEager(graphs, step)
    executor = DeviceExecutor(step, cache, staging, sampler, max_context=limits.max_context)
    scheduler = Scheduler(limits)
    return EngineCore(core.facts, scheduler, executor, pace=OneAhead(executor, scheduler.advance))


def traffic(count: int, *, host_rules: bool) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = random.Random(7)
    prompts = [[rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, 30))] for _ in range(count)]
    prompts[3] = prompts[2] + prompts[3]  # a shared head
    params = [
        SamplingParams(
            max_tokens=4 + i % 17, temperature=[0.0, 0.8, 1.4][i % 3], top_k=[0, 12][i % 2], top_p=[1.0, 0.9][i % 5 == 0],
            min_p=[0.0, 0.05][i % 7 == 0], seed=i, ignore_eos=i % 2 == 0, stop_token_ids=(5, 6, 7) if i % 3 == 1 else (),
        )
        for i in range(count)
    ]  # fmt: skip
    if host_rules:
        rules: list[dict[str, Any]] = [
            {"logprobs": 2, "presence_penalty": 0.3}, {"repetition_penalty": 1.3, "logprobs": MOST_TOP + 3}, {"logit_bias": {9: 3.0}}, {"prompt_logprobs": 1},
            {"min_tokens": 4, "ignore_eos": False}, {"frequency_penalty": 0.4, "logprobs": 0},
        ]  # fmt: skip
        for i in range(0, count, 4):
            params[i] = dataclasses.replace(params[i], **rules[i // 4 % len(rules)])
    return prompts, params


@pytest.mark.parametrize(
    ("captured", "host_rules", "options"),
    [
        (False, True, {}),
        (True, False, {}),
        (True, True, {"max_step_tokens": 8}),
        (True, False, {"num_blocks": 24, "max_context": 80}),
        (True, True, {"num_blocks": 24, "max_context": 80}),
    ],
    ids=["eager", "captured", "chunked", "preempted", "preempted-host-rules"],
)
def test_tokens_one_ahead_are_those_in_turn(
    decoder: Decoder, captured: bool, host_rules: bool, options: dict[str, Any]
) -> None:
    prompts, params = traffic(18, host_rules=host_rules)
    in_turn = LLM(tiny_engine(decoder, **options)).generate(prompts, params)
    core = ahead(decoder, captured=captured, **options)
    made = LLM(core).generate(prompts, params)
    for mine, expected in zip(made, in_turn, strict=True):
        assert (mine.token_ids, mine.finish_reason, mine.seed) == (
            expected.token_ids,
            expected.finish_reason,
            expected.seed,
        )
        agree(mine.logprobs, expected.logprobs)
        assert (mine.prompt_logprobs is None) == (expected.prompt_logprobs is None)
        agree(mine.prompt_logprobs or [], expected.prompt_logprobs or [])
    assert core.idle and core.scheduler.pool.num_held == 0
    assert ("num_blocks" in options) == (core.scheduler.preemptions_total > 0)


def agree(mine: Sequence[TokenLogprobs | None], expected: Sequence[TokenLogprobs | None]) -> None:
    assert len(mine) == len(expected)
    for entry, wanted in zip(mine, expected, strict=True):
        assert (entry is None) == (wanted is None)
        if entry is not None and wanted is not None:
            assert entry.token_id == wanted.token_id and entry.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert [token for token, _ in entry.top] == [token for token, _ in wanted.top]
            assert [value for _, value in entry.top] == pytest.approx([value for _, value in wanted.top], abs=1e-4)


def test_a_request_whose_logits_are_not_numbers_ends_alone() -> None:
    decoder = tiny_decoder()
    poison = 77
    decoder.embed.weight[poison] = float("nan")
    decoder.head.weight.data[poison] = 0.0
    core = ahead(tiny_like(decoder), captured=True)
    prompts = [[5, 4, 6], [5, poison, 6]]
    rules = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    expected = LLM(tiny_engine(decoder)).generate(prompts[:1], rules)[0].token_ids
    for name, prompt in zip(("good", "bad"), prompts, strict=True):
        core.handle(Submit(request_id=name, prompt_ids=prompt, params=rules))
    made: dict[str, list[int]] = {"good": [], "bad": []}
    errors: dict[str, str | None] = {}
    while not core.idle:
        core.step()
        for message in core.take_outbox():
            if isinstance(message, Output):
                made[message.request_id] += message.token_ids
                errors[message.request_id] = message.error
    assert made == {"good": expected, "bad": []}
    assert errors["good"] is None and "not finite" in str(errors["bad"])


def tiny_like(decoder: Decoder) -> Decoder:
    """The same weights in float64, as `ahead` keeps its cache."""
    wide = tiny_decoder(torch.float64)
    wide.load_state_dict(decoder.state_dict())
    return wide


def test_every_rule_has_a_mode_and_a_seat() -> None:
    sampler = DeviceSampler(torch.zeros(NUM_COLUMNS, 4, dtype=torch.int64), VOCAB)

    def request(**rules: Any) -> Request:
        made = Request("r", [1, 2, 2], SamplingParams(**({"max_tokens": 4} | rules)), seed=0, eos_ids=(EOS,))
        made.row = 3
        return made

    for plain in (
        {},
        {"top_k": 4, "top_p": 0.5, "min_p": 0.1},
        {"min_tokens": 3, "ignore_eos": True, "temperature": 0.0},
    ):
        sampler.columns([request(**plain)])
        assert sampler.mode in (GREEDY, DRAWN)
    for rules in ({"min_tokens": 1}, {"logit_bias": {1: 1.0}}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1},
                  {"repetition_penalty": 1.1}):  # fmt: skip
        columns = sampler.columns([request(**rules)])
        assert sampler.mode == RULED and columns[SEAT].tolist() == [3, -1, -1, -1]
        assert columns[BANNED, 0] == ("min_tokens" in rules)
    columns = sampler.columns([request(logprobs=2)])
    assert sampler.mode == RULED and columns[SEAT, 0] == -1 and columns[NUM_TOP].tolist() == [2, -1, -1, -1]


def test_a_seat_is_filled_once_for_each_admission() -> None:
    sampler = DeviceSampler(torch.zeros(NUM_COLUMNS, 2, dtype=torch.int64), VOCAB)
    params = SamplingParams(max_tokens=9, repetition_penalty=1.2, logit_bias={7: -2.0}, min_tokens=2)
    request = Request("r", [1, 2, 2], params, seed=0, eos_ids=(EOS,))
    request.row = 1
    request.tokens += [5, 2, 5]
    sampler.seat([request])
    expected = torch.zeros(VOCAB, dtype=torch.int32)
    expected[[1, 2, 5, EOS]] = torch.tensor([IN_PROMPT, IN_PROMPT + 1, 2, IS_STOP], dtype=torch.int32)
    assert torch.equal(sampler._counts_SV[1], expected) and torch.count_nonzero(sampler._counts_SV[0]) == 0
    assert sampler._addends_SV[1].nonzero().tolist() == [[7]] and sampler._addends_SV[1, 7] == -2.0
    sampler._counts_SV[1, 9] += 1  # as a step does
    sampler.seat([request])
    assert sampler._counts_SV[1, 9] == 1, "the device keeps count"
    request.num_preemptions += 1
    sampler.seat([request])
    assert torch.equal(sampler._counts_SV[1], expected)


def test_the_mode_is_greedy_only_when_everyone_is() -> None:
    sampler = DeviceSampler(torch.zeros(NUM_COLUMNS, 4, dtype=torch.int64), VOCAB)
    cold = Request("a", [1], SamplingParams(max_tokens=1, temperature=0.0), seed=0)
    warm = Request("b", [1], SamplingParams(max_tokens=1, temperature=0.5), seed=0)
    cold.row, warm.row = 2, 1
    columns = sampler.columns([cold])
    assert sampler.mode == GREEDY and columns[0].tolist() == [2, 4, 4, 4]
    sampler.columns([cold, warm])
    assert sampler.mode == DRAWN


@pytest.mark.parametrize("path", [None, "reference"])
def test_choosing_without_the_host_chooses_the_same(path: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    rng = np.random.default_rng(3)
    logits = torch.randn(40, 700, generator=generator) * 4
    logits[5, 3] = float("nan")
    logits[6] = float("-inf")
    shaping = Shaping(
        temperature_R=rng.choice([0.0, 1e-40, 0.3, 1.0, 2.0], 40), top_k_R=rng.choice([0, 1, 5, 300, 9000], 40),
        top_p_R=rng.choice([1.0, 0.9, 0.2], 40), min_p_R=rng.choice([0.0, 0.1], 40), uniform_R=rng.random(40),
    )  # fmt: skip
    on_device = DeviceShaping(**{name: torch.from_numpy(values) for name, values in vars(shaping).items()})
    with forced(path):
        assert torch.equal(choose_on_device(logits, on_device), choose(logits, shaping))
        assert torch.equal(choose_on_device(logits, None), choose(logits, None))


def test_an_executor_is_built_whole(decoder: Decoder) -> None:
    told: list[str] = []
    executor = device_executor(
        decoder,
        num_blocks=6,
        block_tokens=4,
        max_seqs=2,
        max_tokens=8,
        max_context=20,
        announce=told.append,
        startup=(startup := Startup()),
    )
    assert executor.cache.num_blocks == 7 and "step eager" in told[0]
    assert startup.seconds["compile"] > 0 and startup.seconds["load"] == startup.seconds["capture"] == 0
