"""Graphs, staging, sampling and running ahead on a real device: the same as layer by layer and in turn, and never a wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

import gpu_model
from ridgepoint.engine.device_executor import DeviceExecutor, device_executor
from ridgepoint.engine.startup import Startup
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.overlap_trial import overlap_fault
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.step import CapturedOrEager
from ridgepoint.sched.ahead import InTurn, OneAhead, Pace
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import UNKNOWN, Request
from ridgepoint.sched.scheduler import Limits, Scheduler

BLOCK, SEQS, BLOCKS = 16, 12, 120


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return gpu_model.random_decoder(gpu_model.small_spec(False), torch.device("cuda"))


@pytest.fixture(scope="module")
def executor(decoder: Decoder) -> Iterator[DeviceExecutor]:
    startup = Startup()
    made = device_executor(
        decoder, num_blocks=BLOCKS, block_tokens=BLOCK, max_seqs=SEQS, max_tokens=256, max_context=256,
        announce=print, startup=startup,
    )  # fmt: skip
    assert isinstance(made.step, CapturedOrEager)
    assert startup.seconds["compile"] > 0 and startup.seconds["capture"] > 0
    yield made


def traffic() -> list[Request]:
    """Prompts of many lengths, greedy and drawn, with ends of both kinds."""
    requests = []
    for number in range(20):
        params = SamplingParams(
            max_tokens=10 + number, temperature=[0.0, 0.9][number % 2], top_k=[0, 40][number % 3 == 0],
            top_p=[1.0, 0.9][number % 5 == 0], stop_token_ids=tuple(range(100, 400)), ignore_eos=True,
        )  # fmt: skip
        prompt = [(number * 97 + place * 31) % 31_000 + 1 for place in range(1 + 11 * number % 70)]
        requests.append(Request(str(number), prompt, params, seed=number))
    return requests


class Turns:
    """A constraint: output token n has an id that leaves n % 5 when divided by 5. Every token before must be known."""

    failure = None

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size)

    def banned(self, tokens: Sequence[int], num_prompt: int) -> np.ndarray:
        assert UNKNOWN not in tokens
        return self._ids[self._ids % 5 != (len(tokens) - num_prompt) % 5]


def serve(executor: DeviceExecutor, *, ahead: bool, requests: list[Request] | None = None) -> list[list[int]]:
    limits = Limits(
        num_blocks=BLOCKS, block_tokens=BLOCK, max_num_seqs=SEQS, max_step_tokens=256, max_context=256, max_waiting=64
    )
    scheduler = Scheduler(limits)
    pace: Pace = OneAhead(executor, scheduler.advance) if ahead else InTurn(executor)
    requests = requests or traffic()
    for request in requests:
        scheduler.add(request)
    while not scheduler.idle or pace.in_flight:
        for batch, result in pace.push(scheduler.next_batch(0.0)):
            scheduler.commit(batch, result)
    scheduler.check()
    return [request.tokens[request.num_prompt :] for request in requests]


def test_overlapped_launches_keep_their_order() -> None:
    assert overlap_fault(torch.device("cuda")) is None


def test_a_replay_has_the_logits_of_the_layers(executor: DeviceExecutor, decoder: Decoder) -> None:
    for size in (1, 3, 8, SEQS):
        assert gpu_model.captured_error(executor, decoder, size) <= 1e-6


def test_a_replay_agrees_with_the_definition(executor: DeviceExecutor, decoder: Decoder) -> None:
    inputs, columns = gpu_model.decode_inputs(executor, 4, 40), executor.sampler.columns([])
    with torch.inference_mode():
        replayed = executor.step.run(executor.staging.stage(executor.step.pad(inputs), columns))[:4].double().cpu()
        cache = [kv.clone() for kv in executor.cache.layers]
        host = inputs.tensors()
        slow = definition_logits(decoder, cache, host).double().cpu()
    assert float((replayed - slow).norm() / slow.norm()) < 3e-2  # two paths through bf16


def definition_logits(decoder: Decoder, layers: list[torch.Tensor], host: object) -> torch.Tensor:
    """The step by the torch path over a copy of the same cache."""
    from ridgepoint.models.paged import KVCache, PagedContext, StepInputs

    inputs = StepInputs(**{name: tensor.cuda() for name, tensor in vars(host).items() if tensor is not None})
    with forced("cpu"):
        cache = KVCache(decoder.spec, layers[0].shape[0], BLOCK, torch.bfloat16, "cuda")
        cache.must_clear = False  # its blocks hold the past that the step attends to
        for mine, theirs in zip(cache.layers, layers, strict=True):
            mine.copy_(theirs)
        x_TD = decoder.hidden(inputs.token_ids_T, PagedContext(cache, inputs))
        return decoder.logits(x_TD[inputs.logit_rows_R])


def test_launching_never_waits_for_the_device(executor: DeviceExecutor) -> None:
    serve(executor, ahead=True)  # prompts of these lengths have been seen, and their kernels compiled
    assert gpu_model.count_syncs(executor, SEQS, torch.device("cuda")) == 0


def test_the_same_traffic_gives_the_same_tokens_again(executor: DeviceExecutor) -> None:
    first = serve(executor, ahead=True)
    assert first == serve(executor, ahead=True)
    in_turn = serve(executor, ahead=False)
    # Batches differ between the two, and rows of unlike batches in their last bits: a rare draw may fall on the other side.
    same = sum(mine == theirs for mine, theirs in zip(first, in_turn, strict=True))
    assert same >= len(first) - 2


def test_constrained_sequences_keep_their_form_beside_free_ones(executor: DeviceExecutor, decoder: Decoder) -> None:
    """What is banned changes with every token; free sequences are drawn as without them."""
    requests = traffic()
    for request in requests[::3]:
        request.constraint = Turns(decoder.spec.vocab_size)
    said = serve(executor, ahead=True, requests=requests)
    for tokens in said[::3]:
        assert tokens and all(token % 5 == place % 5 for place, token in enumerate(tokens))
    pairs = [pair for number, pair in enumerate(zip(said, serve(executor, ahead=True), strict=True)) if number % 3]
    assert sum(bound == free for bound, free in pairs) >= len(pairs) - 2  # batches differ, as above
