"""Grammars to constraints: what may come next in an output that must have a form.

Compiles what a request sends, in a thread of its own so that nobody's step waits for it, against a token table that is made
once per model, when it is first wanted. The compiler is llguidance; this file alone imports it. Grammars are strangers'
text: their length is bounded here, their cost by `llguidance`'s limits, and the thread has a stack that no chain of
definitions of that length fills. Invariant: whatever is wrong with a grammar ends as `RequestError`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import msgspec

from ridgepoint.engine.constraint import Constraint, MaskTotals
from ridgepoint.engine.protocol import Grammar
from ridgepoint.engine.text import TokenBytes
from ridgepoint.errors import RequestError

MAX_SCHEMA_CHARS = 1 << 17
MAX_GRAMMAR_CHARS = 1 << 14  # of Lark, GBNF and regular expressions, whose cost may grow with the square of it
# A chain of terminals that is too dear is refused after time that grows with the cube of its length.
MAX_GRAMMAR_LINES = 512
MAX_GBNF_RULES = 256  # they are translated in Python, with a pass over all of them for each
# Bytes alone decide what may follow: the tokens of forced text are the model's choice too. Of several such lines the last
# one holds.
_FOOTER = '\n%llguidance {"no_forcing": true}\n'
_STACK_BYTES = 256 << 20  # reserved, not used: the compiler recurses over definitions
_CACHED_GRAMMARS = 32
_MAX_LEXER_STATES = 50_000  # 1 to 2 kB each, for every sequence
# Of the parser: 250 optional fields of one object. An ambiguous grammar then cost a step 40 ms at most.
_MAX_ITEMS_IN_ROW = 1000
MAX_QUOTED_CHARS = 300
_PICTURE = re.compile(r"\s*(\d+ \||\^|<\S+>$)")
# In text that was put around what was sent.
_OWN_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")


class Grammars:
    """`compile` from the step loop; everything else happens in the thread. `read_tokens` gives the token bytes."""

    def __init__(self, read_tokens: Callable[[], TokenBytes], vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.totals = MaskTotals()
        self._read_tokens = read_tokens
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._table: Any = None  # llguidance's, of the whole vocabulary
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._wanted: SimpleQueue[tuple[Grammar, Future[Constraint]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def compile(self, grammar: Grammar) -> Future[Constraint]:
        """A constraint for one sequence. The future raises `RequestError` where the grammar cannot be used."""
        if self._thread is None:
            self._thread = self._start(grammar.param)
        future: Future[Constraint] = Future()
        self._wanted.put((grammar, future))
        return future

    def _start(self, param: str) -> threading.Thread:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=self._work, name="grammars", daemon=True)
            thread.start()
        except RuntimeError as error:  # no memory for its stack, or no thread
            raise RequestError(f"grammars cannot be compiled now: {error}", status=503, param=param) from error
        finally:
            threading.stack_size(before)
        return thread

    def _work(self) -> None:
        while True:
            grammar, future = self._wanted.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._constraint(grammar))
                except RequestError as error:
                    future.set_exception(error)
                except BaseException as error:  # a stranger's text must not end the engine; panics are no Exceptions
                    future.set_exception(refusal(grammar.param, f"{type(error).__name__}: {error}"))

    def _constraint(self, grammar: Grammar) -> Constraint:
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Constraint(matcher.deep_copy(), self._vocab_size, self.totals, grammar.param)

    def _compile(self, grammar: Grammar) -> Any:
        llguidance = _library(grammar.param)
        if self._table is None:
            if not self._eos_ids:
                raise RequestError(
                    "this model has no end-of-sequence token, so a form cannot end it", param=grammar.param
                )
            self._table = llguidance.LLTokenizer(
                _Vocabulary(self._read_tokens(), self._vocab_size, self._eos_ids), eos_token=self._eos_ids
            )
        if grammar.within is not None:
            self._compile(
                msgspec.structs.replace(grammar, within=None)
            )  # what is wrong with the form is found at its beginning
        limits = llguidance.LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES, max_items_in_row=_MAX_ITEMS_IN_ROW, verbose_errors=False
        )
        matcher = llguidance.LLMatcher(self._table, _spec(llguidance, grammar), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()  # what fails at once is refused now
        if matcher.is_error():
            problem = matcher.get_error()
            is_own = grammar.kind != "lark" or not grammar.param.endswith("grammar")
            raise refusal(grammar.param, _OWN_PLACE.sub("", problem) if is_own else problem)
        return matcher


class _Vocabulary:
    """The token table as llguidance wants it. An id without bytes is never allowed."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: TokenBytes, vocab_size: int, eos_ids: list[int]) -> None:
        self.tokens = [tokens.of(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted({*eos_ids, *(one for one in tokens.special_ids if one < vocab_size)})
        self.eos_token_id = eos_ids[0]

    def __call__(self, text: str) -> list[int]:
        raise AssertionError("forced text is not tokenised")


def refusal(param: str, problem: str) -> RequestError:
    return RequestError(f"the grammar cannot be used: {_one_line(problem)}", param=param, code="invalid_grammar")


def _one_line(problem: str) -> str:
    """The reason without pictures of the place and without traces."""
    lines = problem.partition("<backtrace>")[0].splitlines()
    text = " ".join(" ".join(line for line in lines if not _PICTURE.match(line)).split())
    text = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", text)
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "..."


def _spec(llguidance: Any, grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            lark = "start: %json " + grammar.text
        case "regex":
            lark = json.loads(llguidance.LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]["lark_grammar"]
        case "lark":
            lark = grammar.text
    if grammar.within is None:
        spec: str = llguidance.LLMatcher.grammar_from_lark(lark + _FOOTER)
        return spec
    grammars = [{"lark_grammar": grammar.within + _FOOTER}, {"name": "form", "lark_grammar": lark + _FOOTER}]
    return json.dumps({"grammars": grammars})


def _library(param: str) -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "structured output needs the package 'llguidance', which is not installed", param=param,
            code="not_installed", hint="pip install 'ridgepoint[serve]'",
        ) from error  # fmt: skip
    return llguidance


# ---------------------------------------------------------------- what other libraries send


def lark_of(text: str, param: str) -> str:
    """A grammar in Lark's syntax; one in GBNF, as llama.cpp and xgrammar take it, is translated."""
    num_lines = text.count("\n") + 1
    if num_lines > MAX_GRAMMAR_LINES:
        raise RequestError(
            f"{num_lines} lines: at most {MAX_GRAMMAR_LINES} allowed", param=param, code="limit_exceeded"
        )
    if any(re.match(r"%llguidance\b|start\s*:(?!:=)", line.lstrip()) for line in text.splitlines()):
        return text
    num_rules = text.count("::=")
    if num_rules > MAX_GBNF_RULES:
        raise RequestError(
            f"{num_rules} rules of GBNF: at most {MAX_GBNF_RULES} allowed", param=param, code="limit_exceeded"
        )
    _library(param)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        lark: str = gbnf_to_lark(text)
    except Exception as error:  # the library raises bare Exception
        raise RequestError(
            f"the grammar is neither Lark nor GBNF: {_one_line(str(error) or type(error).__name__)}", param=param,
            code="invalid_grammar", hint="Lark begins at a rule 'start: ...', GBNF at 'root ::= ...'",
        ) from error  # fmt: skip
    return lark
