"""ridgepoint through its whole path: admission, paging, the step, sampling. Arguments: FOLDER DTYPE THREADS WEIGHT_FORMAT.

It also says how fast memory was read and products were made around each prompt, and memory between decode steps, by its own
threads: a rate asked for a second later may be another one.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from peer import answer

from ridgepoint.engine.llm import LLM
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Submit
from ridgepoint.kernels import native
from ridgepoint.sched.params import SamplingParams

PROBE_BYTES = 1 << 28  # far past any cache


class Ridgepoint:
    def __init__(self, folder: str, dtype: str, threads: str, fmt: str) -> None:
        options = EngineOptions(
            model=folder, dtype=dtype, threads=int(threads), kv_bytes=2 << 30, max_step_tokens=2048, prefix_cache=False,
            weight_format=None if fmt == "bf16" else fmt,
        )  # fmt: skip
        self.llm = LLM(options)
        self._probe = native.ReadProbe(PROBE_BYTES) if native.available() else None
        self._rates: dict[str, float] = {}

    def rates(self) -> dict[str, float]:
        """Bytes/s, FLOP/s and OP/s around the last turn; none without the native kernels."""
        return self._rates

    def prefill(self, prompt: list[int]) -> float:
        before = self._roofs()
        start = time.perf_counter()
        self.llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
        elapsed_s = time.perf_counter() - start
        after = self._roofs()
        self._rates = {name: max(rate, after[name]) for name, rate in before.items()}
        return elapsed_s

    def _roofs(self) -> dict[str, float]:
        if self._probe is None:
            return {}
        return {
            "read_bytes_per_s": self._probe.bytes_per_s(),
            "bf16_flops_per_s": native.measure_peak_flops_per_s("bf16", 10),
            "int8_flops_per_s": native.measure_peak_flops_per_s("int8", 10),
        }

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Steps are timed once every sequence has its first token, the bookkeeping around them included."""
        core = self.llm.core
        room = steps + sum(map(len, prompts)) // core.scheduler.limits.max_step_tokens + 2
        params = SamplingParams(max_tokens=room, temperature=0.0, ignore_eos=True)
        for number, prompt in enumerate(prompts):
            core.handle(Submit(request_id=f"decode-{number}", prompt_ids=prompt, params=params))
        while core.scheduler.waiting or any(request.num_wanted > 1 for request in core.scheduler.running):
            core.step()
        core.take_outbox()
        seconds, reads = [], []
        for _ in range(steps):
            if self._probe is not None:
                reads.append(self._probe.bytes_per_s())
            start = time.perf_counter()
            core.step()
            core.take_outbox()
            seconds.append(time.perf_counter() - start)
        self._rates = {**self._roofs(), "read_bytes_per_s": statistics.median(reads)} if reads else {}
        for number in range(len(prompts)):
            core.scheduler.cancel(f"decode-{number}")
        return seconds

    def features(self) -> str:
        return native.isa()

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
        return self.llm.generate([prompt], params)[0].token_ids


if __name__ == "__main__":
    answer(lambda: Ridgepoint(*sys.argv[1:5]))
