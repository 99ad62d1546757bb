"""ridgepoint through its whole path: admission, paging, the step, sampling. Arguments: FOLDER DTYPE THREADS WEIGHT_FORMAT."""

from __future__ import annotations

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


class Ridgepoint:
    def __init__(self, folder: str, dtype: str, threads: str, fmt: str) -> None:
        options = EngineOptions(
            model=folder, dtype=dtype, threads=int(threads), kv_bytes=2 << 30, max_step_tokens=2048, prefix_cache=False,
            weight_format=None if fmt == "bf16" else fmt,
        )  # fmt: skip
        self.llm = LLM(options)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self.llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
        return time.perf_counter() - start

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
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            core.step()
            core.take_outbox()
            seconds.append(time.perf_counter() - start)
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
