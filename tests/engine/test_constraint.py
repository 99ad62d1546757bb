"""Constrained output: masks against every string of small languages, on every path that draws, and what goes wrong."""

from __future__ import annotations

import builtins
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from test_device_executor import ahead
from tiny_model import EOS, VOCAB, tiny_decoder

from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.grammar import MAX_GRAMMAR_CHARS, MAX_SCHEMA_CHARS, Grammars, lark_of
from ridgepoint.engine.llm import LLM
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Cancel, Drain, FromEngine, Grammar, Output, Refused, Stopped, Submit
from ridgepoint.engine.text import TokenBytes
from ridgepoint.engine.torch_engine import engine_around
from ridgepoint.errors import RequestError
from ridgepoint.models.decoder import Decoder
from ridgepoint.sched.params import SamplingParams

SPECIAL = 95  # beside EOS
WORDS = [b'{"', b'":', b'"}', b"true", b"ab", b"ba", b"12", b", ", b"\xc3", b"\xa9", b"\n  ", b""]
ASCII = b'{}[]:,"abcdefghijklmnopqrstuvwxyz0123456789 \n-_.+()|*=<>/ABCDEFGHIJKLMNOPQRST\\\t!?;'
LETTERS = [bytes([byte]) for byte in ASCII[: SPECIAL - 1 - len(WORDS)]]
PIECES = [b"</s>", *LETTERS, *WORDS, b"<end>"]
TOKENS = TokenBytes(pieces=tuple(PIECES), special_ids=frozenset({EOS, SPECIAL}))
BLANKLESS = {"x-guidance": {"whitespace_flexible": False}}


def schema(**fields: Any) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(fields | BLANKLESS), param="response_format")


def regex(text: str) -> Grammar:
    return Grammar(kind="regex", text=text, param="structured_outputs.regex")


def lark(text: str) -> Grammar:
    return Grammar(kind="lark", text=text, param="structured_outputs.grammar")


RECORD = schema(
    type="object", additionalProperties=False, required=["a"],
    properties={"a": {"type": "boolean"}, "b": {"type": "string", "maxLength": 8}},
)  # fmt: skip


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    assert len(PIECES) == VOCAB
    return Grammars(lambda: TOKENS, VOCAB, (EOS,))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return tiny_decoder(torch.float64)


def host(decoder: Decoder, **options: Any) -> EngineCore:
    values: dict[str, Any] = {"model": "tiny", "max_num_seqs": 8, "block_tokens": 4, "num_blocks": 200} | options
    return engine_around(
        decoder, EngineOptions(**values), lambda line: None, name="tiny", eos_ids=(EOS,), read_tokens=lambda: TOKENS
    )


def text_of(token_ids: list[int]) -> str:
    return TOKENS.text(token_ids)


# ---------------------------------------------------------------- masks against their definition


def fullmatches(pattern: str, alphabet: str, longest: int) -> set[bytes]:
    words = ("".join(word) for length in range(longest + 1) for word in itertools.product(alphabet, repeat=length))
    return {word.encode() for word in words if re.fullmatch(pattern, word)}


OBJECTS = [
    json.dumps({"k": k} | ({} if n is None else {"n": n}), separators=(",", ":")).encode()
    for k in ("ab", "abba", True)
    for n in (None, 1, 12)
]
LANGUAGES: list[tuple[Grammar, Iterable[bytes]]] = [
    (lark('start: "ab" | "abba" | "" | "ba12"'), [b"ab", b"abba", b"", b"ba12"]),
    (regex("(ab|b){1,3}1?"), fullmatches("(ab|b){1,3}1?", "ab1", 7)),
    (regex("a?é{0,2}"), [start + "é".encode() * n for n in range(3) for start in (b"", b"a")]),
    (
        schema(
            type="object", additionalProperties=False, required=["k"],
            properties={"k": {"enum": ["ab", "abba", True]}, "n": {"enum": [1, 12]}},
        ),
        OBJECTS,
    ),
]  # fmt: skip


def allowed_by_definition(words: set[bytes], so_far: bytes) -> set[int]:
    """Tokens whose bytes keep the text the beginning of a word, and EOS where it is a word."""
    fitting = {
        token_id
        for token_id, piece in enumerate(PIECES)
        if piece and token_id not in TOKENS.special_ids and any(word.startswith(so_far + piece) for word in words)
    }
    return fitting | ({EOS} if so_far in words else set())


@pytest.mark.parametrize(("grammar", "language"), LANGUAGES)
def test_a_mask_is_what_the_language_allows(grammars: Grammars, grammar: Grammar, language: Iterable[bytes]) -> None:
    """Every way to say every word, token by token: no token too many, none missing."""
    words = set(language)
    ways: list[list[int]] = [[]]
    num_seen = 0
    while ways:
        way = ways.pop()
        constraint = grammars.compile(grammar).result()
        banned = {int(one) for one in constraint.banned([7, 8, *way], 2)}
        allowed = allowed_by_definition(words, b"".join(PIECES[one] for one in way))
        assert set(range(VOCAB)) - banned == allowed, text_of(way)
        num_seen += 1
        ways += [[*way, token_id] for token_id in allowed - {EOS}]
    assert num_seen > len(words)


def test_a_constraint_catches_up_with_what_was_said(grammars: Grammars) -> None:
    """Asked after each token or once in a while, it says the same."""
    tokens = [5, *(PIECES.index(piece) for piece in (b'{"', b"a", b'":', b"true"))]
    each, late = (grammars.compile(RECORD).result() for _ in range(2))
    for stop in range(1, len(tokens) + 1):
        found = each.banned(tokens[:stop], 1)
    assert np.array_equal(found, late.banned(tokens, 1))
    assert {PIECES[one] for one in set(range(VOCAB)) - set(found.tolist())} == {b",", b"}"}


# ---------------------------------------------------------------- every path that draws


def generate(core: EngineCore, grammar: Grammar | None = RECORD, **changes: Any) -> list[tuple[list[int], str | None]]:
    prompts = [[1 + (7 * n + i) % 90 for i in range(3 + 2 * n)] for n in range(6)]
    params = [
        SamplingParams(**({"max_tokens": 60, "temperature": 0.0 if n == 0 else 1.5, "seed": n} | changes))
        for n in range(6)
    ]
    return [(done.token_ids, done.finish_reason) for done in LLM(core).generate(prompts, params, grammar=grammar)]


def is_record(text: str) -> bool:
    value = json.loads(text)
    return isinstance(value["a"], bool) and value.keys() <= {"a", "b"} and len(value.get("b", "")) <= 8


def device(decoder: Decoder, grammars: Grammars, *, captured: bool) -> EngineCore:
    core = ahead(decoder, captured=captured)
    return EngineCore(core.facts, core.scheduler, core.executor, pace=core.pace, grammars=grammars)


def test_every_path_draws_the_same_tokens_of_the_form(decoder: Decoder, grammars: Grammars) -> None:
    found = generate(host(decoder))
    for token_ids, reason in found:
        assert reason == "stop" and token_ids[-1] == EOS
        assert is_record(text_of(token_ids))
    assert len({text_of(token_ids) for token_ids, _ in found}) > 3
    assert generate(device(decoder, grammars, captured=False)) == found
    assert generate(device(decoder, grammars, captured=True)) == found


def test_the_native_path_keeps_the_form() -> None:
    """In float32, which the native kernels sample where they are built."""
    for token_ids, reason in generate(host(tiny_decoder(torch.float32))):
        assert reason == "stop" and is_record(text_of(token_ids))


RULES: dict[str, Any] = {
    "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": {3: 2.0, 80: -1.0}, "logprobs": 3, "top_p": 0.9,
}  # fmt: skip


def test_rules_and_forms_go_together(decoder: Decoder, grammars: Grammars) -> None:
    found = generate(host(decoder), **RULES)
    assert all(is_record(text_of(token_ids)) for token_ids, _ in found)
    assert generate(device(decoder, grammars, captured=False), **RULES) == found


def test_constrained_and_free_sequences_share_steps(decoder: Decoder, grammars: Grammars) -> None:
    """Neither kind changes what the other says."""
    free = generate(host(decoder), None, max_tokens=20)
    bound = generate(host(decoder), max_tokens=20)
    for core in (host(decoder), device(decoder, grammars, captured=False)):
        for grammar, kind in ((None, "free"), (RECORD, "bound")):
            for n in range(6):
                core.handle(
                    Submit(
                        request_id=f"{kind}-{n}", prompt_ids=[1 + (7 * n + i) % 90 for i in range(3 + 2 * n)], grammar=grammar,
                        params=SamplingParams(max_tokens=20, temperature=0.0 if n == 0 else 1.5, seed=n),
                    )
                )  # fmt: skip
        said = run_out(core)
        assert [said[f"free-{n}"] for n in range(6)] == [token_ids for token_ids, _ in free]
        assert [said[f"bound-{n}"] for n in range(6)] == [token_ids for token_ids, _ in bound]


def run_out(core: EngineCore) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {}
    while not core.idle:
        core.step()
        for message in core.take_outbox():
            assert not isinstance(message, Refused), message
            if isinstance(message, Output):
                said.setdefault(message.request_id, []).extend(message.token_ids)
    return said


def test_a_preempted_sequence_goes_on_in_its_form(decoder: Decoder) -> None:
    long = regex("([a-f]|[0-9]{2}){30}")
    core = host(decoder, num_blocks=24)
    assert generate(core, long) == generate(host(decoder), long)
    assert core.scheduler.preemptions_total > 0


def test_a_form_that_is_cut_short_ends_by_length(decoder: Decoder) -> None:
    for token_ids, reason in generate(host(decoder), regex("[a-f]{30}"), max_tokens=9):
        assert reason == "length" and len(token_ids) == 9
        assert re.fullmatch("[a-f]{9,18}", text_of(token_ids))


def test_logprobs_are_those_of_the_model(decoder: Decoder) -> None:
    """As with every other rule: of the logits before anything was banned."""
    prompt = [3, 4, 5]
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=2)
    free = LLM(host(decoder)).generate([prompt], params)[0].logprobs[0]
    bound = LLM(host(decoder)).generate([prompt], params, grammar=regex("[a-f]"))[0].logprobs[0]
    assert bound.top == free.top and bound.logprob < free.logprob
    assert PIECES[bound.token_id] in [b"a", b"b", b"c", b"d", b"e", b"f"]


def test_masks_are_counted(decoder: Decoder) -> None:
    core = host(decoder)
    found = generate(core)
    core.step()
    assert core._grammars is not None
    assert core._grammars.totals.masks == sum(len(token_ids) for token_ids, _ in found)
    assert core._grammars.totals.seconds > 0


# ---------------------------------------------------------------- what goes wrong


BAD: list[tuple[Grammar, str]] = [
    (lark('start: "a" | ('), r"line 1, column 15: Expected token '\)'"),
    (lark("start: nobody"), "nobody"),
    (regex("(a"), "regex"),
    (regex("(?=a)b"), "look-around"),
    (schema(type="strange"), "Invalid type: strange"),
    (schema(**{"not": {}}), 'Unimplemented keys: \\["not"\\]'),
    (schema(**{"$ref": "http://127.0.0.1:9/x.json"}), "does not fetch"),
    (schema(**{"$ref": "file:///etc/hostname"}), "does not fetch"),
    (schema(type="string", minLength=3, maxLength=2), "Unsatisfiable"),
    (schema(enum=[]), "Unsatisfiable"),
    (schema(allOf=[{"anyOf": [{"properties": {f"k{i}{j}": {}}} for j in range(4)]} for i in range(9)]), "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "reason"), BAD)
def test_a_bad_grammar_is_refused_with_the_reason(grammars: Grammars, grammar: Grammar, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        grammars.compile(grammar).result()
    assert caught.value.status == 400 and caught.value.param == grammar.param
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message


def chain_of_rules() -> Grammar:
    count = MAX_GRAMMAR_CHARS // 13
    return lark("start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(count)) + f'r{count}: "a"')


def chain_of_terminals() -> Grammar:
    count = MAX_GRAMMAR_CHARS // 13
    return lark("start: R0\n" + "".join(f"R{n}: R{n + 1}\n" for n in range(count)) + f'R{count}: "a"')


def chain_of_schemas() -> Grammar:
    count = MAX_SCHEMA_CHARS // 60
    definitions: dict[str, Any] = {
        f"a{n}": {"type": "array", "items": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(count)
    }
    return schema(**{"$ref": "#/$defs/a0", "$defs": definitions | {f"a{count}": {"const": 1}}})


@pytest.mark.parametrize("make", [chain_of_rules, chain_of_terminals, chain_of_schemas])
def test_long_chains_of_definitions_do_not_fill_a_stack(grammars: Grammars, make: Callable[[], Grammar]) -> None:
    constraint = grammars.compile(make()).result()
    assert len(constraint.banned([1], 1)) < VOCAB
    assert constraint.failure is None


def test_a_grammar_that_becomes_too_expensive_ends_its_own_request_alone(decoder: Decoder) -> None:
    core = host(decoder)
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=1)
    core.handle(Submit(request_id="dear", prompt_ids=[1, 2], params=params, grammar=regex("(.{0,2000}){0,2000}$")))
    core.handle(Submit(request_id="good", prompt_ids=[3, 4], params=params, grammar=RECORD))
    messages = run_messages(core)
    last = {message.request_id: message for message in messages if isinstance(message, Output | Refused)}
    dear, good = last["dear"], last["good"]
    assert isinstance(dear, Refused) and dear.status == 400 and "too many expressions" in dear.message
    assert dear.param == "structured_outputs.regex" and "<" not in dear.message
    assert isinstance(good, Output) and good.finish_reason == "stop"
    assert core.idle


def run_messages(core: EngineCore) -> list[FromEngine]:
    messages: list[FromEngine] = []
    while not core.idle:
        core.step()
        messages += core.take_outbox()
    return messages


@pytest.mark.parametrize("changes", [{"min_tokens": 3}, {"ignore_eos": True}])
def test_what_contradicts_a_form_is_refused(decoder: Decoder, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="form says where it ends") as caught:
        generate(host(decoder), **changes)
    assert caught.value.param in changes


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "llguidance":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RequestError, match=r"ridgepoint\[serve\]"):
        Grammars(lambda: TOKENS, VOCAB, (EOS,)).compile(RECORD).result()
    with pytest.raises(RequestError, match=r"ridgepoint\[serve\]"):
        lark_of('root ::= "a"', "grammar")


def test_a_model_without_an_end_or_a_vocabulary_cannot_be_constrained(decoder: Decoder) -> None:
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        Grammars(lambda: TOKENS, VOCAB, ()).compile(RECORD).result()
    core = engine_around(
        decoder, EngineOptions(model="tiny", num_blocks=50), lambda line: None, name="tiny", eos_ids=(EOS,)
    )
    with pytest.raises(RequestError, match="cannot constrain"):
        generate(core)


def test_whatever_fails_in_the_thread_is_a_refusal() -> None:
    def unreadable() -> TokenBytes:
        raise OSError("gone")

    with pytest.raises(RequestError, match="OSError: gone"):
        Grammars(unreadable, VOCAB, (EOS,)).compile(RECORD).result()


def test_a_machine_without_room_for_the_thread_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    grammars = Grammars(lambda: TOKENS, VOCAB, (EOS,))
    with monkeypatch.context() as patched, pytest.raises(RequestError, match="can't start new thread") as caught:
        patched.setattr(threading.Thread, "start", start)
        grammars.compile(RECORD)
    assert caught.value.status == 503
    assert grammars.compile(RECORD).result().failure is None


# ---------------------------------------------------------------- compiling holds nobody up


class SlowTokens:
    """A token table that is not there until the test says so."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self) -> TokenBytes:
        assert self.released.wait(60)
        return TOKENS


def slow_core(decoder: Decoder) -> tuple[EngineCore, SlowTokens]:
    slow = SlowTokens()
    options = EngineOptions(model="tiny", max_num_seqs=8, block_tokens=4, num_blocks=200)
    return engine_around(
        decoder, options, lambda line: None, name="tiny", eos_ids=(EOS,), read_tokens=slow
    ), slow  # fmt: skip


def submit(request_id: str, grammar: Grammar | None = RECORD) -> Submit:
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3)
    return Submit(request_id=request_id, prompt_ids=[1, 2, 3], params=params, grammar=grammar)


def test_others_run_while_a_grammar_compiles(decoder: Decoder) -> None:
    core, slow = slow_core(decoder)
    core.handle(submit("bound"))
    core.handle(submit("free", None))
    free: list[Output] = []
    while not free or free[-1].finish_reason is None:
        core.step()
        free += [one for one in core.take_outbox() if isinstance(one, Output)]
    assert {one.request_id for one in free} == {"free"}
    assert not core.idle
    slow.released.set()
    bound = run_out(core)
    assert is_record(text_of(bound["bound"]))


def test_cancelled_while_its_grammar_compiles(decoder: Decoder) -> None:
    core, slow = slow_core(decoder)
    core.handle(submit("bound"))
    core.step()
    core.handle(Cancel(request_id="bound"))
    assert [(one.request_id, one.finish_reason) for one in core.take_outbox() if isinstance(one, Output)] == [
        ("bound", "cancelled")
    ]
    assert core.idle
    slow.released.set()


def test_a_drain_waits_for_what_compiles(decoder: Decoder) -> None:
    core, slow = slow_core(decoder)
    core.handle(submit("bound"))
    core.handle(Drain())
    core.step()
    assert not core.stopped
    slow.released.set()
    messages = run_messages(core)
    assert isinstance(messages[-1], Stopped)
    assert any(isinstance(one, Output) and one.finish_reason == "stop" for one in messages)


# ---------------------------------------------------------------- GBNF


GBNF = """# a list of words
root ::= word ("," blank? word){0,2}
word ::= [a-c] [0-9]
blank ::= " "
"""


def test_gbnf_is_translated(decoder: Decoder) -> None:
    for token_ids, reason in generate(host(decoder), lark(lark_of(GBNF, "grammar"))):
        assert reason == "stop"
        assert re.fullmatch("[a-c][0-9](, ?[a-c][0-9]){0,2}", text_of(token_ids))


@pytest.mark.parametrize("text", ["%llguidance {}\nstart: A\nA: /a/", 'start: x\nx: "::="', "  start : x"])
def test_lark_is_left_as_it_is(text: str) -> None:
    assert lark_of(text, "grammar") == text


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "start: A\n" * 513, "root ::= nobody", 'root ::= "a', "root ::= " + "(" * 3000, "root ::= [a" + "b" * 99, "\n" * 16384,
     'root ::= "a"{' + "9" * 5000 + "}", "x ::= y\n" * 257],
)  # fmt: skip
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        lark_of(text, "grammar")
    assert caught.value.status == 400 and len(str(caught.value)) < 500
