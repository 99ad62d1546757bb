"""What a step costs besides the model: scheduling, input tensors, sampling, messages. Microseconds per step.

    python benchmarks/engine_overhead.py --num-seqs 64 --context 512 --json results.json

The model is absent: a fixed token comes out of every step. Everything else is what `serve` runs. `sampling` draws from
random logits of `--vocab` entries for every sequence, greedy, with temperature alone, and with top-k and top-p.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import msgspec
import torch

from ridgepoint.engine.core import EngineCore, ModelFacts
from ridgepoint.engine.inputs import InputBuilder
from ridgepoint.engine.machine import keep_freed_memory
from ridgepoint.engine.protocol import Submit
from ridgepoint.engine.sampler import Sampler
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, StepResult


class NullExecutor:
    """Builds the step's tensors and throws them away."""

    def __init__(self, num_seqs: int, context: int, block_tokens: int) -> None:
        self.inputs = InputBuilder(num_seqs, -(-context // block_tokens), block_tokens)
        self.seconds: list[float] = []

    def run(self, batch: Batch) -> StepResult:
        started = time.perf_counter()
        self.inputs.build(batch)[0].tensors()
        elapsed = time.perf_counter() - started
        self.seconds.append(elapsed)
        return StepResult([5] * sum(segment.wants_sample for segment in batch.segments), elapsed)


def median_us(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e6


def step_parts(num_seqs: int, context: int, steps: int) -> dict[str, float]:
    size = 16
    total = context + steps + 8
    scheduler = Scheduler(
        Limits(
            num_blocks=num_seqs * -(-total // size) + num_seqs, block_tokens=size, max_num_seqs=num_seqs,
            max_step_tokens=max(512, num_seqs), max_context=total, max_waiting=num_seqs,
        )
    )  # fmt: skip
    executor = NullExecutor(num_seqs, total, size)
    facts = ModelFacts(name="null", vocab_size=1000, max_context=total, eos_ids=(), root_of=lambda salt: salt)
    core = EngineCore(facts, scheduler, executor)
    encoder = msgspec.msgpack.Encoder()
    for i in range(num_seqs):
        prompt = [i % 1000, *range(context - 1)]
        core.handle(
            Submit(
                request_id=f"request-{i}",
                prompt_ids=[t % 1000 for t in prompt],
                params=SamplingParams(max_tokens=steps + 4),
            )
        )
    while scheduler.waiting or any(request.num_wanted > 1 for request in scheduler.running):
        core.step()
    executor.seconds.clear()
    core.take_outbox()
    whole, encode = [], []
    for _ in range(steps):
        started = time.perf_counter()
        core.step()
        stepped = time.perf_counter()
        encoder.encode(core.take_outbox())
        whole.append(stepped - started)
        encode.append(time.perf_counter() - stepped)
    inputs_us = statistics.median(executor.seconds) * 1e6
    return {
        "schedule_and_commit_us": statistics.median(whole) * 1e6 - inputs_us,
        "inputs_us": inputs_us,
        "messages_us": statistics.median(encode) * 1e6,
    }


def sampling(num_seqs: int, vocab: int, repeats: int) -> dict[str, float]:
    logits_RV = torch.randn(num_seqs, vocab, generator=torch.Generator().manual_seed(0)) * 3
    rules = {
        "sample_greedy_us": {"temperature": 0.0},
        "sample_temperature_us": {"temperature": 0.8},
        "sample_top_k_top_p_us": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
        "sample_penalties_us": {"temperature": 0.8, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    }
    found = {}
    for name, rule in rules.items():
        params = SamplingParams(max_tokens=100, **rule)  # type: ignore[arg-type]
        requests = [Request(str(i), [j % vocab for j in range(500)], params, seed=i) for i in range(num_seqs)]
        sampler = Sampler()
        found[name] = median_us(lambda r=requests, s=sampler: s.sample(r, logits_RV.clone()), repeats)  # type: ignore[misc]
    found["copy_of_logits_us"] = median_us(logits_RV.clone, repeats)  # included in each of the above
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        figures = step_parts(args.num_seqs, args.context, args.steps) | sampling(args.num_seqs, args.vocab, 30)
    for name, value in figures.items():
        print(f"{name:28} {value:10.1f}")
    if args.json:
        report = {
            "command": " ".join(sys.argv), "hardware": platform.processor() or platform.machine(),
            "torch": torch.__version__, "args": vars(args), "figures": figures,
        }  # fmt: skip
        with open(args.json, "w") as file:  # noqa: PTH123
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
