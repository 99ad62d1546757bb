"""How many tokens a second do 16 streaming clients get from the whole server, and how long do they wait?

The random Qwen3-MoE of 1.3 B parameters behind `ridgepoint serve`, vLLM's server and llama.cpp's `llama-server` on the same cores: all stay up
and are loaded in turn, round after round, the order rotating, so that a slow minute of the machine hits all of them. Clients send 256 random
token ids, stream 64 tokens and send again (a closed loop), through `ridgepoint bench serve`, which speaks plain OpenAI to all and
runs on the same cores as the server it loads. Every round has prompts of its own, so that no prefix of them is cached. Ratios
are medians over rounds of ours / theirs in the same round.

    python benchmarks/serve_clients.py
    python benchmarks/serve_clients.py --format int4-32 --peers vllm --program vllm=/path/to/its/python
    python benchmarks/serve_clients.py --peers llama-server --program llama-server=/path/to/llama-server llama.cpp=/path/to/a/python/with/gguf
    python benchmarks/serve_clients.py --smoke

llama-server gets the GGUF file of the same weights (bf16, Q8_0 or Q4_0), a slot with a cache of its own for every client and as
many threads as cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import provenance
import random_checkpoint
from peers import programs
from peers.peer import MALLOC_ENVIRONMENT

START_S = 900.0  # vLLM compiles for minutes on its first start
PEERS = ("vllm", "llama-server")
CONTEXT_TO_SPARE = 64  # tokens of llama-server's slots beyond what a request needs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(name: str, folder: Path, port: int, arguments: argparse.Namespace) -> list[str]:
    named = dict(arguments.program)
    program = named.get(name, name if name == "llama-server" else sys.executable)
    if not shutil.which(program):
        raise SystemExit(f"there is no program {program!r}: say where {name} is with --program {name}=PATH")
    if name == "ridgepoint":
        options = [] if arguments.format == "bf16" else ["--weight-format", arguments.format]
        return [program, "-m", "ridgepoint.cli.main", "serve", str(folder), "--port", str(port), *options]
    if name == "vllm":
        return [
            program, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port), "--host", "127.0.0.1",
            "--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "64", "--no-enable-prefix-caching",
        ]  # fmt: skip
    if name == "llama-server":
        converter = named.get("llama.cpp", sys.executable)
        file = random_checkpoint.as_gguf(converter, folder, arguments.format.split("-")[0])
        tokens = arguments.clients * (arguments.input_tokens + arguments.output_tokens + CONTEXT_TO_SPARE)
        return [
            program, "--model", str(file), "--port", str(port), "--host", "127.0.0.1", "--threads", str(len(os.sched_getaffinity(0))),
            "--parallel", str(arguments.clients), "--ctx-size", str(tokens), "--no-kv-unified",
        ]  # fmt: skip
    raise ValueError(f"no server is called {name!r}")


@contextmanager
def served(name: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """The server's URL once it answers; the server is gone afterwards."""
    port = free_port()
    environment = os.environ | MALLOC_ENVIRONMENT | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{len(os.sched_getaffinity(0)) - 1}",
    }  # fmt: skip
    if name != "ridgepoint":
        environment.pop("PYTHONPATH")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command(name, folder, port, arguments), stdout=log, stderr=log, env=environment)
        try:
            until = time.monotonic() + START_S
            while not answers(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(f"{name} did not start:\n{log.read()[-3000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def load(url: str, arguments: argparse.Namespace, num_requests: int, seed: int) -> dict[str, Any]:
    """One closed loop; the report of `ridgepoint bench serve`. `seed` is of the prompts."""
    words = [
        sys.executable, "-m", "ridgepoint.cli.main", "bench", "serve", "--url", url, "--concurrency", str(arguments.clients),
        "--num-requests", str(num_requests), "--input-tokens", str(arguments.input_tokens), "--output-tokens",
        str(arguments.output_tokens), "--vocab-size", str(arguments.vocab_size), "--seed", str(seed), "--json",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"the load failed: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    if report["cached_tokens"]:
        raise SystemExit(
            f"{report['cached_tokens']} tokens of prompts were cached; allowed: 0, as peers run without a cache"
        )
    return report


def figures(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_tokens_per_s": report["output_tokens_per_s"], "requests_per_s": report["requests_per_s"], "failed": report["num_errors"],
        **{f"{key}_{p}_s": report[f"{key}_s"][p] for key in ("ttft", "tpot") for p in ("p50", "p90", "p99")},
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Throughput first, then what a client waits; medians over rounds."""
    all_rounds: dict[str, list[dict[str, Any]]] = result["rounds"]
    compared = len(all_rounds) > 1
    waits = ["first token p50", "p90", "between tokens p50", "p90"]
    rows = [["server", *(["x it"] if compared else []), "output tok/s", *waits, "failed"]]
    for name, rounds in all_rounds.items():
        pairs = zip(all_rounds["ridgepoint"], rounds, strict=True)
        gain = statistics.median(ours["output_tokens_per_s"] / its["output_tokens_per_s"] for ours, its in pairs)
        rows.append([
            name, *([f"{gain:.2f}"] if compared else []), f"{statistics.median(r['output_tokens_per_s'] for r in rounds):.0f}",
            *(f"{statistics.median(r[key] for r in rounds):.3f} s" for key in ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s")),
            str(sum(r["failed"] for r in rounds)),
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "ridgepoint-bench" / "moe-1.3b"
    )
    parser.add_argument("--format", default="bf16", help="ridgepoint's weight format")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help=", ".join(PEERS))
    programs.add_option(
        parser, "--program", (*PEERS, "llama.cpp"),
        "vllm's interpreter, if not this one; llama-server, if not on the PATH; llama.cpp, which stands for an interpreter with `gguf`",
    )  # fmt: skip
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64, help="of one round")
    parser.add_argument("--input-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a handful of requests")
    arguments = parser.parse_args()
    folder, overrides = arguments.checkpoint, None
    if arguments.smoke:
        folder, overrides = folder.with_name("smoke"), random_checkpoint.SMOKE
        arguments.clients, arguments.requests, arguments.rounds = 2, 4, 1
        arguments.input_tokens, arguments.output_tokens = 16, 8
    random_checkpoint.write(folder, overrides)
    arguments.vocab_size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ridgepoint", *arguments.peers)}
    with ExitStack() as up:
        urls = {name: up.enter_context(served(name, folder, arguments)) for name in rounds}
        for url in urls.values():
            load(url, arguments, arguments.clients, seed=arguments.rounds)  # warm
        for seed in range(arguments.rounds):
            first = seed % len(rounds)
            for name in [*rounds][first:] + [*rounds][:first]:
                rounds[name].append(figures(load(urls[name], arguments, arguments.requests, seed)))
                rate = rounds[name][-1]["output_tokens_per_s"]
                print(f"round {seed + 1} {name}: {rate:.1f} tok/s", file=sys.stderr, flush=True)
    result = {
        **provenance.provenance(__doc__), "format": arguments.format, "clients": arguments.clients, "requests": arguments.requests,
        "input_tokens": arguments.input_tokens, "output_tokens": arguments.output_tokens, "rounds": rounds,
    }  # fmt: skip
    provenance.save(arguments.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
