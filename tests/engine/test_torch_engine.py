"""The engine around a real (tiny, random) model: what it generates is what the definition generates."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_model import EOS, VOCAB, greedy, latent_decoder, logits_of, tiny_decoder, tiny_engine

from ridgepoint.catalog.lifting import lift_runs
from ridgepoint.cost.ridge import ridge_tokens
from ridgepoint.engine import step_size
from ridgepoint.engine.llm import LLM, Completion
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.prediction import choose_timer, precision_of
from ridgepoint.engine.protocol import Cancel, Output, StepReport, Submit
from ridgepoint.engine.torch_engine import engine_around, resolve_memory
from ridgepoint.errors import CatalogError, ConfigError, EngineError, RequestError
from ridgepoint.kernels import native
from ridgepoint.kernels.roofs import Roofs
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import pack_decoder
from ridgepoint.sched.params import SamplingParams


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny steps are slower on two threads, and far slower where other tests keep the cores busy."""
    torch.set_num_threads(1)
    if not native.available():
        yield
        return
    before = native.num_threads()
    native.set_num_threads(1)
    yield
    native.set_num_threads(before)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def prompts_of(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_step_tokens": 8},  # prompts in chunks of a block or two
        {"num_blocks": 24, "max_context": 80},  # sequences are preempted
        {"prefix_cache": False, "block_tokens": 16},
        {"max_num_seqs": 1},
    ],
    ids=["roomy", "chunked", "preempted", "uncached", "alone"],
)
def test_greedy_tokens_are_those_of_the_definition(decoder: Decoder, options: dict[str, Any]) -> None:
    prompts = prompts_of(9, seed=1)
    prompts += [prompts[0], prompts[1] + prompts[2], prompts[1] + prompts[3]]  # equal and shared heads
    engine = tiny_engine(decoder, **options)
    made = LLM(engine).generate(prompts, GREEDY)
    assert tokens_of(made) == [greedy(decoder, prompt, 24) for prompt in prompts]
    for completion in made:
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == EOS else "length")
    assert (engine.scheduler.preemptions_total > 0) == ("num_blocks" in options)
    assert engine.scheduler.pool.num_held == 0
    engine.scheduler.check()


def test_cached_prefixes_are_reused_and_change_nothing(decoder: Decoder) -> None:
    engine = LLM(tiny_engine(decoder))
    head = prompts_of(1, seed=2)[0] * 4
    first = engine.generate([head], GREEDY)[0]
    again, longer = engine.generate([head, [*head, 5, 6]], GREEDY)
    assert first.cached_tokens == 0
    assert again.cached_tokens == (len(head) - 1) // 4 * 4 and again.token_ids == first.token_ids
    assert longer.cached_tokens == len(head) // 4 * 4
    assert longer.token_ids == greedy(decoder, [*head, 5, 6], 24)
    other_tenant = engine.generate([head], GREEDY, salt=b"someone else")[0]
    assert other_tenant.cached_tokens == 0 and other_tenant.token_ids == first.token_ids


def test_equal_prompts_in_flight_are_computed_once(decoder: Decoder) -> None:
    engine = tiny_engine(decoder, max_step_tokens=16)
    prompt = prompts_of(1, seed=3, longest=3)[0] * 32
    made = LLM(engine).generate([prompt] * 6, SamplingParams(max_tokens=2, temperature=0.0))
    assert len({tuple(tokens) for tokens in tokens_of(made)}) == 1
    once, tail = len(prompt) + 1, len(prompt) - (len(prompt) - 1) // 4 * 4 + 1
    assert engine.scheduler.computed_tokens_total <= once + 5 * tail


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_survivors_of_a_cancelled_crowd_are_as_if_alone(kernels: str) -> None:
    """64 sequences with seeds and unlike rules, every third cancelled on the way.

    The native kernels give a row the same bits in any company, in any chunk and when it is computed again. Torch's matrix
    products round differently for different numbers of rows: float32 logits then differ in the last bits with the company,
    and a draw in some thousands falls between two such values. Through torch it is therefore float64.
    """
    if kernels == "torch":
        decoder, size = tiny_decoder(torch.float64), 4
    else:
        if not native.available():
            pytest.skip(f"native kernels {native.load_error()}")
        decoder, size = tiny_decoder(torch.bfloat16), 16
        pack_decoder(decoder)
    prompts = prompts_of(64, seed=4)
    params = [
        SamplingParams(
            max_tokens=20 + i % 13 + 2 * size, temperature=[0.0, 0.7, 1.3][i % 3], top_k=[0, 20][i % 2], top_p=[1.0, 0.9][i % 5 == 0],
            min_p=[0.0, 0.05][i % 7 == 0], repetition_penalty=[1.0, 1.2][i % 4 == 0], seed=i, logprobs=0, ignore_eos=i % 4 != 2,
            presence_penalty=[0.0, 0.5][i % 6 == 0], min_tokens=i % 5, logit_bias={3: 2.0} if i % 8 == 0 else {},
        )
        for i in range(64)
    ]  # fmt: skip
    num_blocks = {4: 90, 16: 28}[size]
    engine = tiny_engine(
        decoder, max_num_seqs=24, num_blocks=num_blocks, block_tokens=size, max_context=112, max_step_tokens=64
    )
    made: dict[str, list[int]] = {str(i): [] for i in range(64)}
    logprobs: dict[str, list[float]] = {str(i): [] for i in range(64)}
    reasons: dict[str, str | None] = {}
    for i in range(64):
        engine.handle(Submit(request_id=str(i), prompt_ids=prompts[i], params=params[i]))
    while not engine.idle:
        engine.step()
        for message in engine.take_outbox():
            if isinstance(message, Output):
                made[message.request_id] += message.token_ids
                logprobs[message.request_id] += [entry.logprob for entry in message.logprobs or []]
                reasons[message.request_id] = message.finish_reason
        for request_id, tokens in made.items():
            if int(request_id) % 3 == 0 and len(tokens) >= 7 and reasons[request_id] is None:
                held = engine.scheduler.pool.num_held
                engine.handle(Cancel(request_id=request_id))
                assert engine.scheduler.pool.num_held < held
        engine.scheduler.check()
    assert engine.scheduler.pool.num_held == 0
    assert engine.scheduler.preemptions_total > 0
    cancelled = [request_id for request_id, reason in reasons.items() if reason == "cancelled"]
    assert len(cancelled) > 10
    for i in range(0, 64, 2):  # each kind of rule and of end is among these
        alone = LLM(tiny_engine(decoder, block_tokens=size)).generate([prompts[i]], params[i])[0]
        if kernels == "native":
            assert logprobs[str(i)] == [entry.logprob for entry in alone.logprobs][: len(logprobs[str(i)])]
        if str(i) in cancelled:
            assert made[str(i)] == alone.token_ids[: len(made[str(i)])]
        else:
            assert (made[str(i)], reasons[str(i)]) == (alone.token_ids, alone.finish_reason)


def test_logprobs_are_of_the_raw_logits(decoder: Decoder) -> None:
    prompt = prompts_of(1, seed=5)[0]
    params = SamplingParams(max_tokens=6, temperature=1.5, seed=3, logprobs=4, logit_bias={9: 4.0}, ignore_eos=True,
                            prompt_logprobs=2, repetition_penalty=1.4)  # fmt: skip
    for options in ({}, {"max_step_tokens": 8}):
        made = LLM(tiny_engine(decoder, **options)).generate([prompt, prompt], params)[1]  # a twin that may not share
        expected = torch.log_softmax(logits_of(decoder, prompt + made.token_ids), -1)
        for i, entry in enumerate(made.logprobs):
            row = expected[len(prompt) - 1 + i]
            assert entry.token_id == made.token_ids[i]
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
            assert [token for token, _ in entry.top] == row.topk(4).indices.tolist()
        assert made.prompt_logprobs is not None and made.prompt_logprobs[0] is None
        assert len(made.prompt_logprobs) == len(prompt)
        for p in range(1, len(prompt)):
            entry = made.prompt_logprobs[p]
            assert entry is not None and entry.token_id == prompt[p]
            assert entry.logprob == pytest.approx(float(expected[p - 1, prompt[p]]), abs=1e-4)
            assert [token for token, _ in entry.top] == expected[p - 1].topk(2).indices.tolist()
        assert made.cached_tokens == 0


def test_prompt_logprobs_survive_preemption(decoder: Decoder) -> None:
    prompts = [[1 + i] * 30 for i in range(4)]
    params = SamplingParams(max_tokens=20, temperature=0.0, prompt_logprobs=0, ignore_eos=True)
    engine = tiny_engine(decoder, num_blocks=26, max_context=60, max_step_tokens=8)
    made = LLM(engine).generate(prompts, params)
    assert engine.scheduler.preemptions_total > 0
    for prompt, completion in zip(prompts, made, strict=True):
        assert completion.prompt_logprobs is not None and len(completion.prompt_logprobs) == len(prompt)


def test_rules_of_a_request_hold(decoder: Decoder) -> None:
    llm = LLM(tiny_engine(decoder))
    prompt = [5, 6, 7]

    def one(**rules: Any) -> Completion:
        return llm.generate([prompt], SamplingParams(**({"max_tokens": 12, "temperature": 0.0} | rules)))[0]

    free = one(ignore_eos=True)
    assert len(free.token_ids) == 12 and free.finish_reason == "length"
    third = free.token_ids[2]
    stopped = one(ignore_eos=True, stop_token_ids=(third,))
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(third) + 1] and stopped.finish_reason == "stop"
    late = one(ignore_eos=True, stop_token_ids=(third,), min_tokens=5)
    assert third not in late.token_ids[:5]
    assert set(one(logit_bias={42: 100.0}).token_ids) == {42}
    assert one(logit_bias={EOS: 100.0}).token_ids == [EOS]
    assert one(logit_bias={EOS: 100.0}, min_tokens=3).token_ids[3:] == [EOS]
    assert EOS not in one(logit_bias={EOS: 100.0}, min_tokens=3).token_ids[:3]
    varied = one(ignore_eos=True, max_tokens=60, repetition_penalty=1e6)
    assert len(set(varied.token_ids)) == 60 and not set(varied.token_ids) & set(prompt)
    once_each = one(ignore_eos=True, max_tokens=60, presence_penalty=1e6)
    assert len(set(once_each.token_ids)) == 60
    evenly = one(ignore_eos=True, max_tokens=VOCAB * 2, frequency_penalty=1e6)
    assert sorted(evenly.token_ids) == sorted([*range(VOCAB)] * 2)


def test_seeds_decide(decoder: Decoder) -> None:
    llm = LLM(tiny_engine(decoder))
    prompt = [9, 8, 7]
    params = [
        SamplingParams(max_tokens=16, seed=seed, ignore_eos=True, temperature=2.0) for seed in (1, 1, 2, -1, 2**64 - 1)
    ]
    a, same, other, low, wrapped = llm.generate([prompt] * 5, params)
    assert a.token_ids == same.token_ids != other.token_ids
    assert low.token_ids == wrapped.token_ids and a.seed == 1
    unseeded = llm.generate([prompt] * 2, SamplingParams(max_tokens=16, ignore_eos=True, temperature=2.0))
    assert unseeded[0].seed != unseeded[1].seed and unseeded[0].seed is not None
    replay = llm.generate(
        [prompt], SamplingParams(max_tokens=16, ignore_eos=True, temperature=2.0, seed=unseeded[0].seed)
    )
    assert replay[0].token_ids == unseeded[0].token_ids


def test_a_request_whose_logits_are_not_numbers_ends_alone() -> None:
    decoder = tiny_decoder()
    poison = 77
    decoder.embed.weight[poison] = float("nan")
    decoder.head.weight.data[poison] = 0.0
    engine = tiny_engine(decoder)
    engine.handle(Submit(request_id="bad", prompt_ids=[5, poison, 6], params=GREEDY))
    engine.handle(Submit(request_id="good", prompt_ids=[5, 4, 6], params=GREEDY))
    made: dict[str, list[int]] = {"bad": [], "good": []}
    errors = {}
    while not engine.idle:
        engine.step()
        for message in engine.take_outbox():
            if isinstance(message, Output):
                made[message.request_id] += message.token_ids
                errors[message.request_id] = message.error
    assert made == {"bad": [], "good": greedy(decoder, [5, 4, 6], 24)}
    assert errors["good"] is None and "not finite" in str(errors["bad"])
    assert engine.scheduler.pool.num_held == 0
    with pytest.raises(EngineError, match="not finite"):
        LLM(engine).generate([[poison]], GREEDY)


def test_refusals(decoder: Decoder) -> None:
    llm = LLM(tiny_engine(decoder, max_context=50))
    for prompt, params, match in (
        ([], GREEDY, "no tokens"),
        ([1] * 50, GREEDY, "the prompt has 50 tokens"),
        ([1] * 40, GREEDY, "ask for at most 10"),
        ([VOCAB], GREEDY, "token id 96"),
        ([-1], GREEDY, "token id -1"),
        ([1], SamplingParams(max_tokens=1, logit_bias={VOCAB: 1.0}), "logit_bias"),
        ([1], SamplingParams(max_tokens=1, stop_token_ids=(10**6,)), "stop_token_ids"),
    ):
        with pytest.raises(RequestError, match=match):
            llm.generate([[1, 2], prompt], params)
        assert llm.core.scheduler.pool.num_held == 0


def test_memory_is_resolved_with_reasons(decoder: Decoder) -> None:
    def resolve(**options: Any) -> tuple[EngineOptions, str]:
        lines: list[str] = []
        values = {"model": "m", "block_tokens": 4, "max_num_seqs": 2} | options
        resolved = resolve_memory(EngineOptions(**values), decoder, torch.device("cpu"), lines.append)
        return resolved, "\n".join(lines)

    per_block = 2 * 2 * 4 * 2 * 8 * 4  # layers, K and V, tokens, heads, width, float32
    resolved, told = resolve(kv_bytes=10 * per_block + 5)
    assert (resolved.num_blocks, resolved.max_context) == (10, 41) and "below the model's 512" in told
    resolved, told = resolve()
    assert (resolved.num_blocks, resolved.max_context) == (2 * 512 // 4, 512) and "2 sequences of full length" in told
    resolved, _ = resolve(num_blocks=3, max_context=100, max_step_tokens=7)
    assert (resolved.num_blocks, resolved.max_context, resolved.max_step_tokens) == (3, 100, 7)
    with pytest.raises(ConfigError, match="holds no block"):
        resolve(kv_bytes=per_block - 1)


def test_options_are_validated() -> None:
    for wrong in ({"dtype": "int3"}, {"max_num_seqs": 0}, {"kv_bytes": 5, "num_blocks": 5}, {"step_budget_s": 0.0},
                  {"max_step_tokens": 3}, {"max_waiting": -1}):  # fmt: skip
        with pytest.raises(ConfigError):
            EngineOptions(model="m", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown engine option 'max_seqs'"):
        EngineOptions.from_dict({"model": "m", "max_seqs": 3})
    with pytest.raises(ConfigError, match="max_num_seqs"):
        EngineOptions.from_dict({"model": "m", "max_num_seqs": "many"})
    assert EngineOptions.from_dict({"model": "m", "max_num_seqs": 3}).max_num_seqs == 3


def test_a_timed_budget_needs_hardware_and_predicts_with_it(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="need hardware"):
        EngineOptions(model="m", step_budget_s=0.01)
    options = EngineOptions(model="m", step_budget_s=0.01, hardware="epyc-9654", num_blocks=50, block_tokens=4)
    told: list[str] = []
    timer = choose_timer(options, decoder, told.append)
    assert "EPYC" in told[0] and "fp32" in told[0]
    core = engine_around(decoder, options, told.append, name="m", eos_ids=(EOS,), timer=timer)
    core.handle(Submit(request_id="a", prompt_ids=[4, 5, 6], params=GREEDY))
    core.step()
    (report,) = [message for message in core.take_outbox() if isinstance(message, StepReport)]
    assert report.predicted_s is not None and 0 < report.predicted_s < 1
    assert choose_timer(EngineOptions(model="m"), decoder, told.append) is None
    with pytest.raises(CatalogError, match="unknown accelerator"):
        choose_timer(EngineOptions(model="m", hardware="abacus"), decoder, told.append)


@pytest.mark.skipif(not native.available(), reason="8-bit caches are native")
@pytest.mark.parametrize("kv_dtype", ["int8", "float8_e4m3fn"])
def test_a_cache_of_codes_holds_more_and_is_another_prefix(kv_dtype: str) -> None:
    decoder = tiny_decoder(torch.bfloat16)
    plain = tiny_engine(decoder, block_tokens=16)
    coded = tiny_engine(decoder, block_tokens=16, kv_dtype=kv_dtype)
    assert coded.executor.cache.block_bytes < plain.executor.cache.block_bytes  # type: ignore[attr-defined]
    assert coded.facts.root_of(b"") != plain.facts.root_of(b"")
    prompts = prompts_of(6, seed=8)
    together, engine = (
        LLM(coded).generate(prompts, GREEDY),
        LLM(tiny_engine(decoder, block_tokens=16, kv_dtype=kv_dtype)),
    )
    assert tokens_of(together) == [engine.generate([prompt], GREEDY)[0].token_ids for prompt in prompts]


def test_the_prediction_knows_how_kv_is_kept() -> None:
    decoder = tiny_decoder(torch.bfloat16)
    assert precision_of(decoder, torch.int8).kv == "int8"
    assert precision_of(decoder).kv == "bf16"


def test_a_kv_type_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_dtype"):
        EngineOptions(model="m", kv_dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float32 cannot be had"):
        tiny_engine(tiny_decoder(torch.bfloat16), block_tokens=16, kv_dtype="float32")
    with pytest.raises(ConfigError, match="cannot be had"):
        tiny_engine(tiny_decoder(torch.bfloat16), block_tokens=4, kv_dtype="int8")


@pytest.mark.skipif(not native.available(), reason="only the recorded step has one order of sums")
def test_float32_results_do_not_depend_on_company_or_chunks() -> None:
    """Bit for bit: log-probabilities of the same request alone, in a crowd, and prefilled in small pieces."""
    decoder = tiny_decoder()
    pack_decoder(decoder)
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=3)
    prompts = prompts_of(7, seed=12)
    crowd = LLM(tiny_engine(decoder, block_tokens=16)).generate(prompts, params)
    alone, pieces = (LLM(tiny_engine(decoder, block_tokens=16, **more)) for more in ({}, {"max_step_tokens": 8}))
    for prompt, together in zip(prompts, crowd, strict=True):
        for engine in (alone, pieces):
            assert engine.generate([prompt], params)[0].logprobs == together.logprobs


@pytest.mark.skipif(not native.available(), reason="prompts are lifted natively")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_over_lifted_latents_do_not_depend_on_company_or_chunks(dtype: torch.dtype) -> None:
    """Bit for bit, over latents that are lifted for whole runs of a prompt: alone, in a crowd, in pieces that cut runs, and computed again after a
    preemption, generated tokens among the rest."""
    decoder = latent_decoder(dtype)
    pack_decoder(decoder)
    params = SamplingParams(max_tokens=24, temperature=0.0, logprobs=3, ignore_eos=True)
    prompts = prompts_of(6, seed=13, longest=80)
    assert max(map(len, prompts)) > 64 > min(map(len, prompts))

    def made(together: bool, **options: Any) -> list[Any]:
        core = tiny_engine(decoder, block_tokens=16, **options)
        groups = [prompts] if together else [[prompt] for prompt in prompts]
        found = [completion.logprobs for group in groups for completion in LLM(core).generate(group, params)]
        preempted.append(core.scheduler.preemptions_total)
        return found

    preempted: list[int] = []
    alone = made(False)
    assert made(True) == alone
    assert made(False, max_step_tokens=11) == alone
    assert made(True, num_blocks=9, max_context=112, max_step_tokens=40) == alone
    assert preempted[:3] == [0, 0, 0] and preempted[3] > 0


@pytest.mark.skipif(not native.available(), reason="prompts are lifted natively")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_warm_prefix_cache_changes_no_bit_over_lifted_latents(dtype: torch.dtype) -> None:
    """Runs of 32 tokens. Prompts that go on after a shorter one, after its answer, and that stop within a longer one."""
    decoder = latent_decoder(dtype)
    pack_decoder(decoder)
    params = SamplingParams(max_tokens=24, temperature=0.0, logprobs=3, ignore_eos=True)
    rng = random.Random(17)
    first, more = ([rng.randrange(1, VOCAB) for _ in range(count)] for count in (60, 70))

    def made(engine: LLM, prompt: list[int]) -> Completion:
        return engine.generate([prompt], params)[0]

    def cold(prompt: list[int]) -> Completion:
        return made(LLM(tiny_engine(decoder, block_tokens=16)), prompt)

    warm = LLM(tiny_engine(decoder, block_tokens=16))
    answer = made(warm, first).token_ids
    for prompt, cached in (
        (first + answer + more[:20], 32),  # of 60 tokens 32 were lifted, of these 104 it is 96
        (first + more, 48),  # 128 of 130 are
        ((first + more)[:110], 96),
        (first + answer[:20], 64),
        (first, 48),  # its own blocks, a lifted run and one block past it
        (first[:40], 32),
    ):
        found = made(warm, prompt)
        assert found.logprobs == cold(prompt).logprobs
        assert found.cached_tokens == cached


@pytest.mark.skipif(not native.available(), reason="prompts are lifted natively")
@pytest.mark.parametrize(("block_tokens", "least_cached"), [(48, 3 * 48), (80, 80), (24, 6 * 24)])
def test_blocks_that_no_run_ends_on_are_reused_to_the_bit(block_tokens: int, least_cached: int) -> None:
    """Runs of 32 end within blocks of 48 and 80 tokens; blocks of 24 are not the native kernels', which then lift nothing."""
    decoder = latent_decoder(torch.bfloat16)
    pack_decoder(decoder)
    params = SamplingParams(max_tokens=40, temperature=0.0, logprobs=3, ignore_eos=True)
    text = [random.Random(5).randrange(1, VOCAB) for _ in range(200)]

    def engine() -> LLM:
        return LLM(tiny_engine(decoder, block_tokens=block_tokens, num_blocks=40))

    warm, cached = engine(), 0
    for end in (90, 130, 165, 158, 95, 200, 166):  # of the first 64 to 192 tokens are lifted
        found = warm.generate([text[:end]], params)[0]
        assert found.logprobs == engine().generate([text[:end]], params)[0].logprobs
        cached += found.cached_tokens
    assert cached >= least_cached


def test_decoders_that_lift_say_so() -> None:
    decoder = latent_decoder(torch.float32)
    assert tiny_engine(decoder, block_tokens=16).facts.whole_runs == ()
    if native.available():
        pack_decoder(decoder)
        for block_tokens in (16, 48):
            assert tiny_engine(decoder, block_tokens=block_tokens).facts.whole_runs == (32,) == lift_runs(decoder.spec)
        assert (
            tiny_engine(decoder, block_tokens=24).facts.whole_runs == ()
        )  # the native kernels' blocks are of 16 tokens


def test_prompts_beside_readers_have_at_least_a_run_that_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip(f"native kernels {native.load_error()}")
    decoder = latent_decoder(torch.bfloat16)
    pack_decoder(decoder)
    monkeypatch.setattr(step_size, "ridge_tokens", lambda *args, **rates: 100)
    assert step_size.usual_mixed_tokens(decoder)[0] == 128  # type: ignore[index]
    assert step_size.usual_mixed_tokens(decoder, (256,))[0] == 256  # type: ignore[index]


def test_prompts_beside_readers_have_the_ridge_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip(f"native kernels {native.load_error()}")
    decoder = tiny_decoder(torch.bfloat16)
    assert step_size.usual_mixed_tokens(decoder) is None  # plain weights: the ridge is torch's affair
    pack_decoder(decoder)
    chunks = []
    for ratio in (4.0, 600.0, 1e4):
        roofs = Roofs(
            read_bytes_per_s=1e9,
            f32_flops_per_s=1.0,
            bf16_flops_per_s=ratio * 1e9,
            int8_flops_per_s=1.0,
            int16_flops_per_s=1.0,
        )
        monkeypatch.setattr(step_size, "_roofs", lambda threads, roofs=roofs: roofs)
        ridge = ridge_tokens(decoder.spec, precision_of(decoder), flops_per_s=ratio * 1e9, bytes_per_s=1e9)
        mixed = step_size.usual_mixed_tokens(decoder)
        assert mixed is not None and ridge <= mixed[0] < ridge + step_size.ALIGN
        chunks.append(mixed[0])
    assert chunks[0] < chunks[1] < chunks[2]

    def limits(**options: Any) -> tuple[int, int | None]:
        asked = EngineOptions(model="tiny", num_blocks=8, max_num_seqs=24, **options)
        found = engine_around(decoder, asked, lambda line: None, name="tiny", eos_ids=()).scheduler.limits
        return found.max_step_tokens, found.mixed_prompt_tokens

    assert limits() == (512, chunks[2])
    assert limits(max_step_tokens=100) == (100, None)  # who asks for a size gets it
    assert limits(mixed_prompt_tokens=7) == (512, 7)
