"""What does lifting keys and values out of their latents save a prompt on this machine, and what does it cost a conversation?

    python benchmarks/latent_prompts.py --json benchmarks/results/latent_prompts.json
    python benchmarks/latent_prompts.py --conversations --json benchmarks/results/latent_conversations.json
    python benchmarks/latent_prompts.py --formats bfloat16 --shapes 512@4096
    python benchmarks/latent_prompts.py --smoke

Latent attention of 16 heads over a latent of 512 and a rotary part of 64, keys and values of 128 channels besides: one chunk
of a prompt at the end of its context, absorbed and lifted in turns (A B A B), projections into and out of the latent space
included. `counted` is the ratio of the products that both forms need. Chunks of 64 and 256 tokens show what it costs that the
form follows from a token's place and not from its chunk. The rate's fraction is of the register peak, measured around each row.
Errors are those of the last eight queries against float64 on the numbers the cache holds.

The two forms round differently, so a block of the prefix cache serves its own form alone. With `--conversations` the serving scheduler runs
chats that are sent back turn by turn, the prompt of each all that was said before and what the user adds, and counts the tokens that it
computes: over a cache of one form, and over latents of which whole runs of a prompt are lifted. Nothing is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import provenance
from ridgepoint.catalog.lifting import lift_tokens
from ridgepoint.kernels import mla_attention, native, paged_attention
from ridgepoint.kernels.packed import pack
from ridgepoint.kernels.paged_attention.native import stored
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import StepResult

HEADS, LATENT, ROPE, NOPE, VALUE = 16, 512, 64, 128, 128
BLOCK_TOKENS, SCALE = 16, (NOPE + ROPE) ** -0.5
SHAPES = "512@0,2048@0,512@4096,2048@4096,256@4096,64@4096"
SMOKE_SHAPES = "256@0,40@216"
TURNS = ((32, 32), (32, 96), (64, 192), (128, 384), (256, 768), (1024, 256), (1024, 1024))  # tokens of user and answer
CONVERSATION_TOKENS = 16384


@dataclass(frozen=True, kw_only=True)
class Form:
    ms: float
    gflop_per_s: float
    peak_frac: float
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Row:
    kv_format: str
    queries: int
    cached: int
    absorbed: Form
    lifted: Form
    ratio: float  # of times, absorbed over lifted: median of the pairs, and their extremes
    least: float
    most: float
    counted: float


class Chunk:
    """The last `queries` tokens of a prompt of `cached + queries`, whose latents all lie in the cache."""

    def __init__(self, queries: int, cached: int, dtype: torch.dtype) -> None:
        self.queries, self.context = queries, cached + queries
        compute = torch.float32 if dtype == torch.float32 else torch.bfloat16
        blocks = -(-self.context // BLOCK_TOKENS)
        self.tables = torch.randperm(blocks)[None]
        position = torch.arange(self.context)
        slots = self.tables[0, position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        self.kv = mla_attention.allocate(blocks, BLOCK_TOKENS, LATENT, ROPE, dtype, "cpu")
        latents, ropes = (torch.randn(self.context, n).to(compute) for n in (LATENT, ROPE))
        mla_attention.write(self.kv, latents, ropes, slots)
        q = torch.randn(queries, HEADS, NOPE + ROPE).to(compute)
        self.q_nope, self.q_rope = q[..., :NOPE], q[..., NOPE:].contiguous()
        self.w_uk, self.w_uv = ((torch.randn(HEADS, NOPE, LATENT) / LATENT**0.5).to(compute) for _ in "kv")
        self.packed = pack(self.w_uk.transpose(1, 2)), pack(self.w_uv)
        pairs = queries * cached + queries * (queries + 1) / 2
        lift = LATENT * (NOPE + VALUE)
        self.absorbed_flops = 2.0 * HEADS * ((2 * LATENT + ROPE) * pairs + lift * queries)
        self.lifted_flops = 2.0 * HEADS * ((NOPE + ROPE + VALUE) * pairs + lift * self.context)

    def attend(self, lifted: bool) -> Callable[[], torch.Tensor]:
        starts_1, context_1 = torch.tensor([0, self.queries]), torch.tensor([self.context])
        # As the middle of a longer prompt: every token is of a whole run.
        prompt_1 = context_1 + 4096 if lifted else None
        plan = paged_attention.prepare(starts_1, context_1, self.tables, BLOCK_TOKENS, prompt_1)
        return lambda: mla_attention.attend(self.q_nope, self.q_rope, self.kv, *self.packed, plan, SCALE, None)

    def truth(self) -> torch.Tensor:
        """Of the last eight queries."""
        keys, _, scales = stored(self.kv[self.tables[0]], LATENT + ROPE, 0)
        keys, scales = keys[: self.context].double(), scales[: self.context].double()
        latents, ropes = (x * scales[:, 0, i : i + 1] for i, x in enumerate(keys[:, 0].split((LATENT, ROPE), -1)))
        position = torch.arange(self.context)
        hidden = position > position[-8:, None]
        q_latent = torch.einsum("qhn,hnc->qhc", self.q_nope[-8:].double(), self.w_uk.double())
        logits = torch.einsum("qhc,kc->hqk", q_latent, latents)
        logits += torch.einsum("qhr,kr->hqk", self.q_rope[-8:].double(), ropes)
        weights = (logits * SCALE).masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("qhc,hvc->qhv", torch.einsum("hqk,kc->qhc", weights, latents), self.w_uv.double())


def measure(fmt: str, queries: int, cached: int, smoke: bool) -> Row:
    dtype = getattr(torch, fmt)
    chunk = Chunk(queries, cached, dtype)
    probe = ("f32" if dtype == torch.float32 else "bf16", 5 if smoke else 100)
    peak = native.measure_peak_flops_per_s(*probe)
    calls, truth = [chunk.attend(lifted=False), chunk.attend(lifted=True)], chunk.truth()
    errors = [float((call()[-8:].double() - truth).norm() / truth.norm()) for call in calls]  # and a warm start
    times: list[tuple[float, float]] = []
    deadline = time.perf_counter() + (0.0 if smoke else 1.5)
    while len(times) < (1 if smoke else 5) or time.perf_counter() < deadline:
        times.append((seconds_of(calls[0]), seconds_of(calls[1])))
    peak = max(peak, native.measure_peak_flops_per_s(*probe))

    def form(which: int, flops: float) -> Form:
        seconds = statistics.median(pair[which] for pair in times)
        return Form(
            ms=seconds * 1e3, gflop_per_s=flops / seconds / 1e9, peak_frac=flops / seconds / peak, relative_error=errors[which],
        )  # fmt: skip

    ratios = [a / b for a, b in times]
    return Row(
        kv_format=fmt, queries=queries, cached=cached, absorbed=form(0, chunk.absorbed_flops),
        lifted=form(1, chunk.lifted_flops), ratio=statistics.median(ratios),
        least=min(ratios), most=max(ratios), counted=chunk.absorbed_flops / chunk.lifted_flops,
    )  # fmt: skip


def seconds_of(call: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Per turn after the first, which has nothing to find: tokens it adds, and those of its prompt that are computed."""

    user_tokens: int
    answer_tokens: int
    turns: int
    run_tokens: int
    one_form: float
    lifted: float
    one_form_found_frac: float
    lifted_found_frac: float


def converse(user_tokens: int, answer_tokens: int, turns: int, runs: tuple[int, ...]) -> tuple[float, float]:
    """(prompt tokens computed a turn, share of prompt tokens found), by the scheduler; a turn is over before the next begins."""
    context = turns * (user_tokens + answer_tokens) + 1
    scheduler = Scheduler(
        Limits(
            num_blocks=2 * (context // BLOCK_TOKENS + 1), block_tokens=BLOCK_TOKENS, max_num_seqs=1, max_step_tokens=512,
            max_context=context, max_waiting=0,
        )
    )  # fmt: skip
    said: list[int] = []
    computed = sent = 0
    for turn in range(turns):
        said += range(len(said), len(said) + user_tokens)
        params = SamplingParams(max_tokens=answer_tokens, ignore_eos=True)
        request = Request(str(turn), said, params, seed=0, whole_runs=runs)
        scheduler.add(request)
        while (batch := scheduler.next_batch(0.0)) is not None:
            scheduler.commit(batch, StepResult([len(request.tokens)] * len(batch.sampled), 0.0))
        if turn:
            computed, sent = computed + request.num_prompt - request.cached_tokens, sent + request.num_prompt
        said = list(request.tokens)
    return computed / (turns - 1), 1 - computed / sent


def conversations(smoke: bool) -> list[Conversation]:
    run = lift_tokens(LATENT, NOPE, VALUE)
    assert run is not None
    found = []
    for user, answer in TURNS[:1] if smoke else TURNS:
        turns = 8 if smoke else max(8, CONVERSATION_TOKENS // (user + answer))
        plain, lifted = (converse(user, answer, turns, runs) for runs in ((), (run,)))
        found.append(
            Conversation(
                user_tokens=user, answer_tokens=answer, turns=turns, run_tokens=run, one_form=plain[0], lifted=lifted[0],
                one_form_found_frac=plain[1], lifted_found_frac=lifted[1],
            )
        )  # fmt: skip
    return found


def conversation_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'a turn adds':>20}{'computed of its prompt':>34}{'found in the cache':>26}",
        f"{'user':>9}{'answer':>11}{'one form':>16}{'lifted':>9}{'more':>9}{'one form':>17}{'lifted':>9}{'turns':>8}",
    ]
    for r in rows:
        lines.append(
            f"{r['user_tokens']:9}{r['answer_tokens']:11}{r['one_form']:16.0f}{r['lifted']:9.0f}{r['lifted'] - r['one_form']:9.0f}"
            f"{r['one_form_found_frac']:17.1%}{r['lifted_found_frac']:9.1%}{r['turns']:8}"
        )
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Of either question; a result answers one."""
    if "conversations" in result:
        return conversation_table(result["conversations"])
    forms = f"{'ms':>8}{'GFLOP/s':>9}{'peak':>6}{'error':>9}"
    lines = [
        f"{'KV':15}{'chunk':>9}   {'absorbed':32}   {'lifted':32}  times faster",
        f"{'':24}   {forms}   {forms}  [of pairs] (counted)",
    ]
    for r in result["rows"]:
        told = "   ".join(
            f"{f['ms']:8.2f}{f['gflop_per_s']:9.0f}{f['peak_frac']:6.2f}{f['relative_error']:9.1e}"
            for f in (r["absorbed"], r["lifted"])
        )
        chunk = f"{r['queries']}@{r['cached']}"
        lines.append(
            f"{r['kv_format']:15}{chunk:>9}   {told}  {r['ratio']:.2f} [{r['least']:.2f}, {r['most']:.2f}] ({r['counted']:.2f})"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="bfloat16,int8,float8_e4m3fn,float32", help="of the cache")
    parser.add_argument("--shapes", help=f"queries@cached tokens, default {SHAPES}")
    parser.add_argument(
        "--conversations", action="store_true", help="what chats compute anew instead of what prompts take"
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    options = parser.parse_args()
    if options.conversations:
        chats = [asdict(row) for row in conversations(options.smoke)]
        result = {**provenance.provenance(__doc__), "conversations": chats}
        print(table(result))
        provenance.save(options.json, result)
        return 0
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shapes = (options.shapes or (SMOKE_SHAPES if options.smoke else SHAPES)).split(",")
    rows = []
    with torch.inference_mode():
        for fmt in options.formats.split(","):
            for shape in shapes:
                queries, cached = map(int, shape.split("@"))
                rows.append(measure(fmt, queries, cached, options.smoke))
    result = {**provenance.provenance(__doc__), "isa": native.isa(), "rows": [asdict(row) for row in rows]}
    print(f"{native.isa()}, {native.num_threads()} threads")
    print(table(result))
    provenance.save(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
