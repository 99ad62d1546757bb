"""What a step costs besides the model: scheduling, input tensors, sampling, messages. Microseconds per step.

    python benchmarks/engine_overhead.py --num-seqs 64 --context 512 --json benchmarks/results/engine_overhead.json
    python benchmarks/engine_overhead.py --smoke

The model is absent: a fixed token comes out of every step. Everything else is what `serve` runs. Sampling draws from
random logits of `--vocab` entries for every sequence, by the native kernels and by their numpy twin: greedy, with
temperature alone, with top-k and top-p, with penalties over 500 tokens, and with five log-probabilities each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

import provenance
from ridgepoint.engine.core import EngineCore, ModelFacts
from ridgepoint.engine.inputs import InputBuilder
from ridgepoint.engine.machine import keep_freed_memory
from ridgepoint.engine.protocol import Submit
from ridgepoint.engine.sampler import Sampler
from ridgepoint.kernels import native
from ridgepoint.kernels.sample import cpu, rows
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, StepResult


class NullExecutor:
    """Writes the step's inputs and runs nothing."""

    def __init__(self, num_seqs: int, context: int, block_tokens: int) -> None:
        room = HostInputs.room(max(512, num_seqs), num_seqs, -(-context // block_tokens))
        self.inputs = InputBuilder(room, block_tokens)
        self.seconds: list[float] = []

    def run(self, batch: Batch) -> StepResult:
        started = time.perf_counter()
        self.inputs.build(batch)
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


RULES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k and top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "log-probabilities": {"temperature": 0.8, "logprobs": 5},
}


def sampling(num_seqs: int, vocab: int, repeats: int) -> dict[str, float]:
    """Microseconds of a step's sampling by rule, without the copy of the logits that each repeat needs."""
    logits_RV = torch.randn(num_seqs, vocab, generator=torch.Generator().manual_seed(0)) * 3
    copy_us = median_us(logits_RV.clone, repeats)
    found = {}
    for name, rule in RULES.items():
        params = SamplingParams(max_tokens=100, **rule)  # type: ignore[arg-type]
        requests = [Request(str(i), [j % vocab for j in range(500)], params, seed=i) for i in range(num_seqs)]
        sampler = Sampler(num_seqs, vocab)

        def sample(requests: list[Request] = requests, sampler: Sampler = sampler) -> None:
            sampler.prepare(requests)
            sampler.leave(logits_RV.clone())
            sampler.found()

        found[name] = median_us(sample, repeats) - copy_us
    return found


@contextmanager
def without_native_sampling() -> Iterator[None]:
    """The numpy twin for a while."""
    takes = cpu.takes  # type: ignore[attr-defined]
    rows.takes = cpu.takes = lambda *tensors: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        rows.takes = cpu.takes = takes  # type: ignore[attr-defined]


def table(result: dict[str, Any]) -> str:
    """Microseconds per step: the parts around the model, and sampling by rule and path."""
    lines = [f"{name:28}{value:12.1f}" for name, value in result["step_us"].items()]
    paths = list(result["sampling_us"])
    lines += ["", f"{'sampling':28}" + "".join(f"{path:>12}" for path in paths)]
    lines += [f"{rule:28}" + "".join(f"{result['sampling_us'][path][rule]:12.1f}" for path in paths) for rule in RULES]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.smoke:
        options.num_seqs, options.context, options.steps, options.vocab = 3, 20, 3, 100
    keep_freed_memory()
    torch.set_num_threads(1)
    repeats = 2 if options.smoke else 30
    with torch.inference_mode():
        step_us = step_parts(options.num_seqs, options.context, options.steps)
        with without_native_sampling():
            sampling_us = {"numpy": sampling(options.num_seqs, options.vocab, repeats)}
        if native.available():
            sampling_us = {"native": sampling(options.num_seqs, options.vocab, repeats), **sampling_us}
    result = {
        **provenance.provenance(__doc__),
        "shape": {name: getattr(options, name) for name in ("num_seqs", "context", "steps", "vocab")},
        "step_us": step_us,
        "sampling_us": sampling_us,
    }
    provenance.save(options.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
