"""Where do the seconds of a decode step, or of a prompt's step, go, operator by operator, against this machine's roof?

Sequences decode through the engine (scheduler, pages, recorded step, sampler), or one prompt is computed in one step, every
step with a clock around each of its operators; what is left of the step is what the engine adds. Medians over steps. An operator's
roof is the larger of the time its bytes need at the read bandwidth measured between the steps (median) and its products at the peak
of its format, measured before and after them.
Experts that a step touches are counted as uniform routing expects: E (1 - (1 - K/E)^T).

    python benchmarks/decode_profile.py /tmp/moe-1.3b --formats bf16 int8 int4-32 --batches 1 64
    python benchmarks/decode_profile.py /tmp/moe-1.3b --formats bf16 int8-a8 --batches --prefill 512 2048
    python benchmarks/decode_profile.py --smoke
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import torch

import provenance
import random_checkpoint
from ridgepoint.engine.llm import LLM
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Submit
from ridgepoint.kernels import native
from ridgepoint.kernels.roofs import Roofs, measure_roofs, weight_at, weight_bytes
from ridgepoint.kernels.tensor_call import Recording
from ridgepoint.sched.params import SamplingParams

PROMPTS = 5  # of each length
STEP_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a step computes: its tokens, the rows whose logits are wanted, cached tokens read, and pairs of query and key. Of a
    prompt computed at once, latent attention lifts whole runs."""

    tokens: int
    logit_rows: int
    keys: int
    pairs: int
    is_prompt: bool = False

    def rows(self, operator: ctypes.Structure) -> int:
        return self.logit_rows if operator.rows_from == native.LOGIT_ROWS else self.tokens

    def lifted(self, attention: ctypes.Structure) -> int:
        """Rows that meet lifted keys."""
        lifts = self.is_prompt and attention.prompt_lens is not None
        return self.tokens // attention.lift_tokens * attention.lift_tokens if lifts else 0


def decoding(batch: int, context: int) -> Load:
    return Load(tokens=batch, logit_rows=batch, keys=batch * context, pairs=batch * context)


def prompting(tokens: int) -> Load:
    return Load(tokens=tokens, logit_rows=1, keys=tokens, pairs=tokens * (tokens + 1) // 2, is_prompt=True)


def amounts(operator: ctypes.Structure, load: Load, roofs: Roofs) -> tuple[str, float, float, float]:
    """Name, bytes from memory, FLOPs and peak FLOP/s of one operator."""
    rows = load.rows(operator)
    if isinstance(operator, native.LinearOp):
        w = weight_at(operator.weight)
        name = f"linear {w.inputs} to {w.outputs}"
        return name, weight_bytes(w), 2.0 * rows * w.inputs * w.outputs, roofs.flops_per_s(w)
    if isinstance(operator, native.MoeOp):
        gate_up, down = weight_at(operator.gate_up), weight_at(operator.down)
        experts, k = gate_up.num_matrices, operator.top_k
        flops = 2.0 * rows * k * (gate_up.inputs * gate_up.outputs + down.inputs * down.outputs)
        hit_frac = 1 - (1 - k / experts) ** rows
        return "experts", hit_frac * (weight_bytes(gate_up) + weight_bytes(down)), flops, roofs.flops_per_s(gate_up)
    if isinstance(operator, native.UnliftedLinearOp):
        w = weight_at(operator.linear.weight)
        rows -= load.lifted(native.AttentionOp.from_address(operator.attention))
        name = f"linear {w.inputs} to {w.outputs} of each head"
        return name, weight_bytes(w), 2.0 * rows * w.num_matrices * w.inputs * w.outputs, roofs.flops_per_s(w)
    if isinstance(operator, native.LiftedAttentionOp):
        latents, lifted = operator.latents, load.lifted(operator.latents)
        pair, key = operator.nope_dim + latents.rope_dim + operator.out_dim, operator.nope_dim + operator.out_dim
        flops = 2.0 * latents.heads * (pair * lifted * (lifted + 1) / 2 + key * latents.v_dim * lifted)
        return "lifted attention", 2.0 * lifted * latents.key_dim, flops, roofs.bf16_flops_per_s
    if isinstance(operator, native.AttentionOp):
        width, lifted = operator.key_dim + operator.v_dim, load.lifted(operator)
        flops = 2.0 * (load.pairs - lifted * (lifted + 1) // 2) * operator.heads * width
        return "attention", 2.0 * load.keys * operator.kv_heads * width, flops, roofs.bf16_flops_per_s
    return type(operator).__name__.removesuffix("Op").lower(), 0.0, 0.0, roofs.f32_flops_per_s


def summed(
    operators: tuple[ctypes.Structure, ...], seconds: list[float], load: Load, roofs: Roofs
) -> list[dict[str, Any]]:
    """One row an operator and shape, summed over layers; `seconds` are those of each operator."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0.0])
    for operator, elapsed_s in zip(operators, seconds, strict=True):
        name, read, flops, peak = amounts(operator, load, roofs)
        roof_s = max(read / roofs.read_bytes_per_s, flops / peak)
        for place, amount in enumerate((1, elapsed_s, read, flops, roof_s)):
            sums[name][place] += amount
    return [
        {"operator": name, "calls": int(calls), "seconds": s, "bytes": read, "flops": flops, "roof_s": roof_s}
        for name, (calls, s, read, flops, roof_s) in sorted(sums.items(), key=lambda item: -item[1][1])
    ]


@contextmanager
def clocked(recording: Recording) -> Iterator[list[list[float]]]:
    """Steps replayed inside also say how long each operator took."""
    seconds: list[list[float]] = []

    def replay(tokens: int, logit_rows: int) -> None:
        seconds.append(recording.profile(tokens, logit_rows))

    recording.replay = replay  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del recording.replay  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of each step and of each operator in it, and bytes/s read before each."""

    steps_s: list[float]
    operators_s: list[list[float]]
    reads: list[float]


PROBE_BYTES = 1 << 28  # far past any cache


def timed_steps(llm: LLM, starts: Iterable[Callable[[], None]]) -> Timed:
    """One step after each of `starts`."""
    core, seconds, reads, probe = llm.core, [], [], native.ReadProbe(PROBE_BYTES)
    with clocked(core.executor.step.recorded.recording) as of_operators:  # type: ignore[attr-defined]
        for start in starts:
            start()
            reads.append(probe.bytes_per_s())
            started = time.perf_counter()
            core.step()
            core.take_outbox()
            seconds.append(time.perf_counter() - started)
    return Timed(steps_s=seconds, operators_s=of_operators, reads=reads)


def decode(llm: LLM, batch: int, context: int, steps: int, vocab: int) -> Timed:
    """Decode steps of `batch` sequences that stand at about `context` tokens."""
    core, rng = llm.core, random.Random(batch)
    # The first sequences decode while the last are still in prefill.
    params = SamplingParams(max_tokens=steps + batch * context // STEP_TOKENS + 4, temperature=0.0, ignore_eos=True)
    names = [f"profile-{batch}-{i}" for i in range(batch)]
    for name in names:
        prompt = [rng.randrange(2, vocab) for _ in range(context)]
        core.handle(Submit(request_id=name, prompt_ids=prompt, params=params))
    while core.scheduler.waiting or any(request.num_wanted > 1 for request in core.scheduler.running):
        core.step()
    if len(core.scheduler.running) != batch:
        raise SystemExit(f"{len(core.scheduler.running)} of {batch} sequences are running")
    timed = timed_steps(llm, [lambda: None] * steps)
    for name in names:
        core.scheduler.cancel(name)
    return timed


def prefill(llm: LLM, tokens: int, steps: int, vocab: int) -> Timed:
    """Steps that compute a fresh prompt of `tokens` each."""
    core, rng = llm.core, random.Random(tokens)
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)

    def submit(name: str) -> None:
        if core.scheduler.waiting or core.scheduler.running:
            raise SystemExit(f"a prompt of {tokens} tokens took more than one step")
        prompt = [rng.randrange(2, vocab) for _ in range(tokens)]
        core.handle(Submit(request_id=name, prompt_ids=prompt, params=params))

    return timed_steps(llm, [partial(submit, f"prefill-{tokens}-{i}") for i in range(steps)])


def measure(folder: Path, fmt: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    batches, prompts, context, steps = args.batches, args.prefill, args.context, args.steps
    seqs = max(batches, default=1)
    room = max(context + steps + seqs * context // STEP_TOKENS + 8, max(prompts, default=0) + 8)
    llm = LLM(
        EngineOptions(
            model=str(folder), dtype="bfloat16", weight_format=fmt, threads=args.threads, max_num_seqs=seqs,
            max_step_tokens=max([STEP_TOKENS, *prompts]), max_context=room, num_blocks=seqs * -(-room // 16),
            prefix_cache=False,
        )
    )  # fmt: skip
    operators = llm.core.executor.step.recorded.recording.operators  # type: ignore[attr-defined]
    vocab = llm.core.facts.vocab_size

    def point(load: Load, run: Callable[[], Timed]) -> dict[str, Any]:
        roofs = measure_roofs()
        timed = run()
        roofs = replace(roofs.best(measure_roofs()), read_bytes_per_s=statistics.median(timed.reads))
        step_s = statistics.median(timed.steps_s)
        medians = [statistics.median(times) for times in zip(*timed.operators_s, strict=True)]
        return {
            "format": fmt, "step_s": step_s, "tokens_per_s": load.tokens / step_s,
            "operators_s": statistics.median(map(sum, timed.operators_s)), "measure_roofs": asdict(roofs),
            "operators": summed(operators, medians, load, roofs),
        }  # fmt: skip

    points = []
    for batch in batches:
        run = partial(decode, llm, batch, context, steps, vocab)
        points.append({"batch": batch, **point(decoding(batch, context + steps // 2), run)})
    for tokens in prompts:
        run = partial(prefill, llm, tokens, min(steps, PROMPTS), vocab)
        points.append({"prompt_tokens": tokens, **point(prompting(tokens), run)})
    return points


def table(result: dict[str, Any]) -> str:
    """Operators of each point, slowest first, and what the engine adds around them."""
    lines = []
    for point in result["points"]:
        roof_s = sum(row["roof_s"] for row in point["operators"])
        read = point["measure_roofs"]["read_bytes_per_s"]
        size = f"batch {point['batch']}" if "batch" in point else f"prompt of {point['prompt_tokens']}"
        lines += [
            f"{point['format']}, {size}: {point['tokens_per_s']:.0f} tokens/s, step {1e6 * point['step_s']:.0f} us, "
            f"{roof_s / point['step_s']:.2f} of the roof (read {read / 1e9:.1f} GB/s)",
            f"  {'operator':<24}{'calls':>6}{'us':>9}{'of step':>9}{'GB/s':>8}{'GFLOP/s':>9}{'of roof':>9}",
        ]
        for row in point["operators"]:
            s = row["seconds"]
            lines.append(
                f"  {row['operator']:<24}{row['calls']:>6}{1e6 * s:>9.0f}{s / point['step_s']:>9.1%}{row['bytes'] / s / 1e9:>8.1f}"
                f"{row['flops'] / s / 1e9:>9.0f}{row['roof_s'] / s:>9.2f}"
            )
        around_s = point["step_s"] - point["operators_s"]
        lines.append(f"  {'around the operators':<24}{'':>6}{1e6 * around_s:>9.0f}{around_s / point['step_s']:>9.1%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint (default: the benchmark's random one)")
    parser.add_argument("--formats", nargs="+", default=["bf16-12", "int8", "int8-a8", "int4-32", "int4-32-a8"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--prefill", type=int, nargs="*", default=[], metavar="TOKENS", help="prompts of one step each")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=native.usable_cores())
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, one format: a check that the benchmark runs"
    )
    args = parser.parse_args()
    if args.smoke:
        args.formats, args.batches, args.prefill, args.context, args.steps = ["int4-32-a8"], [1, 3], [24], 16, 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or random_checkpoint.write(Path(scratch), random_checkpoint.SMOKE if args.smoke else None)
        points = [point for fmt in args.formats for point in measure(folder, fmt, args)]
    result = {
        "schema": "ridgepoint.benchmark.decode_profile/1",
        **provenance.provenance(__doc__),
        "threads": args.threads,
        "isa": native.isa(),
        "context": args.context,
        "torch": torch.__version__,
        "points": points,
    }
    provenance.save(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
