"""What does a grammar cost a sequence in each step?

    python benchmarks/structured_masks.py --json benchmarks/results/structured_masks.json
    python benchmarks/structured_masks.py --smoke

Sequences of random logits over a vocabulary cut from Python's own library are drawn step by step, free and constrained in turn.
`mask` is what the grammar takes (`structured_mask_seconds_total` of a server), `prepare` that and writing the bans, `draw` the
sampling itself. Every row draws another token, so grammars are met wherever random text leads them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch

import provenance
from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.protocol import Grammar
from ridgepoint.engine.sampler import Sampler
from ridgepoint.engine.text import TokenBytes
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request

RECORD = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip
GRAMMARS = {
    "schema": Grammar(kind="json_schema", text=json.dumps(RECORD), param="schema"),
    "any object": Grammar(kind="json_schema", text='{"type": "object"}', param="schema"),
    "regex": Grammar(kind="regex", text=r"[A-Z][a-z ]{3,200}(\d{4}-\d{2}-\d{2})?", param="regex"),
    "choice": Grammar(kind="lark", text='start: "positive" | "negative" | "neutral"', param="choice"),
}


def vocabulary(size: int) -> TokenBytes:
    """All bytes, then words and the beginnings of words in the order in which the library's files have them."""
    pieces = dict.fromkeys([b"</s>", *(bytes([byte]) for byte in range(256))])
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for word in re.findall(r" ?\w+|[^\w\s]+|\s+", file.read_text(errors="ignore")):
            raw = word.encode()
            pieces.update(dict.fromkeys(raw[:end] for end in range(2, len(raw) + 1)))
            if len(pieces) >= size:
                return TokenBytes(pieces=tuple(pieces)[:size], special_ids=frozenset({0}))
    return TokenBytes(pieces=(*pieces, *[b""] * (size - len(pieces))), special_ids=frozenset({0}))


def steps(
    grammars: Grammars, grammar: Grammar | None, num_rows: int, count: int, vocab_size: int
) -> list[tuple[float, float]]:
    """Seconds of `prepare` and `draw`; a sequence that ends is followed by another."""
    sampler = Sampler(num_rows, vocab_size)
    requests = [request(grammars, grammar, row) for row in range(num_rows)]
    generator = torch.Generator().manual_seed(0)
    times: list[tuple[float, float]] = []
    for _ in range(count):
        logits_RV = torch.randn(num_rows, vocab_size, generator=generator)
        started_s = time.perf_counter()
        sampler.prepare(requests)
        prepared_s = time.perf_counter()
        sampler.leave(logits_RV)
        token_ids, _ = sampler.found()
        times.append((prepared_s - started_s, time.perf_counter() - prepared_s))
        for one, token_id in zip(requests, token_ids, strict=True):
            one.tokens.append(token_id)
        if 0 in token_ids:
            requests = [one if one.tokens[-1] else request(grammars, grammar, row) for row, one in enumerate(requests)]
    return times


def request(grammars: Grammars, grammar: Grammar | None, row: int) -> Request:
    constraint = None if grammar is None else grammars.compile(grammar).result()
    params = SamplingParams(max_tokens=1 << 20, temperature=1.0)
    return Request(f"r{row}", [1], params, seed=row, eos_ids=(0,), constraint=constraint)


def measure(name: str, grammars: Grammars, num_rows: int, count: int, vocab_size: int) -> dict[str, Any]:
    started_s = time.perf_counter()
    grammars.compile(GRAMMARS[name]).result()
    compile_s = time.perf_counter() - started_s
    free, bound = [], []
    before = (grammars.totals.masks, grammars.totals.seconds)
    for _ in range(4):  # in turn: the machine is not the same for long
        free += steps(grammars, None, num_rows, count // 4, vocab_size)
        bound += steps(grammars, GRAMMARS[name], num_rows, count // 4, vocab_size)
    masks, seconds = grammars.totals.masks - before[0], grammars.totals.seconds - before[1]

    def per_row_us(times: list[tuple[float, float]], which: int) -> float:
        return statistics.median(one[which] for one in times) / num_rows * 1e6

    return {
        "grammar": name, "sequences": num_rows, "compile_ms": compile_s * 1e3, "mask_us": seconds / masks * 1e6,
        "prepare_us": per_row_us(bound, 0), "free_prepare_us": per_row_us(free, 0),
        "draw_us": per_row_us(bound, 1), "free_draw_us": per_row_us(free, 1),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Microseconds a sequence and step; medians, `mask` the mean."""
    lines = ["grammar     sequences  compile    mask   prepare  of free    draw  of free"]
    lines += [
        f"{row['grammar']:12}{row['sequences']:9}{row['compile_ms']:6.1f} ms{row['mask_us']:8.0f}{row['prepare_us']:10.0f}"
        f"{row['free_prepare_us']:9.1f}{row['draw_us']:8.0f}{row['free_draw_us']:9.0f}"
        for row in result["rows"]
    ]
    return "\n".join([*lines, f"token table of {result['vocab_size']} tokens: {result['table_ms']:.0f} ms, once"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vocab_size, count = (1000, 8) if options.smoke else (151_936, 200)
    tokens = vocabulary(vocab_size)
    grammars = Grammars(lambda: tokens, vocab_size, (0,))
    started_s = time.perf_counter()
    grammars.compile(Grammar(kind="regex", text="a", param="regex")).result()
    table_s = time.perf_counter() - started_s
    rows = [measure(name, grammars, rows, count, vocab_size) for name in GRAMMARS for rows in (1, 8)]
    result = {**provenance.provenance(__doc__), "vocab_size": vocab_size, "table_ms": table_s * 1e3, "rows": rows}
    provenance.save(options.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
