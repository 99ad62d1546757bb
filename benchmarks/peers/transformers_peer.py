"""transformers, eager, with its own cache. Run by `serve_throughput.py`: FOLDER DTYPE EXPERTS_IMPLEMENTATION."""

from __future__ import annotations

import sys
import time

import torch
from peer import answer
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    def __init__(self, folder: str, dtype: str, experts: str) -> None:
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", experts_implementation=experts
        ).eval()

    def _run(self, prompts: list[list[int]]) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self.model.config)
        logits = self.model(torch.tensor(prompts), past_key_values=cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1), cache

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._run([prompt])
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        tokens, cache = self._run(prompts)
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            logits = self.model(tokens[:, None], past_key_values=cache).logits
            tokens = logits[:, -1].argmax(-1)
            seconds.append(time.perf_counter() - start)
        return seconds

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        tokens, cache = self._run([prompt])
        out = [int(tokens[0])]
        while len(out) < steps:
            logits = self.model(tokens[:, None], past_key_values=cache).logits
            tokens = logits[:, -1].argmax(-1)
            out.append(int(tokens[0]))
        return out


if __name__ == "__main__":
    answer(lambda: Transformers(*sys.argv[1:4]))
