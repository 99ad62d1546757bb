"""llama.cpp through its C interface as llama-cpp-python exposes it: FILE.gguf THREADS."""

from __future__ import annotations

import sys
import time

import llama_cpp
import numpy as np
from peer import answer


class LlamaCpp:
    """A context per question, with as many sequences as the question has. Each sequence gets a cache of its own: in a
    unified one every sequence attends over all cells, which at batch 64 costs llama.cpp two thirds of its speed."""

    def __init__(self, file: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.threads = threads
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self.context: object = None

    def _open(self, num_seqs: int, tokens_per_seq: int) -> None:
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = num_seqs * tokens_per_seq
        options.n_batch = 2048
        options.n_ubatch = 512
        options.n_seq_max = num_seqs
        options.n_threads = options.n_threads_batch = self.threads
        options.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, options)

    def _step(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode (token, position, sequence, wants_logits) rows; the argmax of each row that wants logits."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wants
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        picks = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self.context, i)
                picks.append(int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax()))
        return picks

    def _prompt(self, prompt: list[int], sequence: int) -> int:
        picks: list[int] = []
        for start in range(0, len(prompt), 2048):
            part = prompt[start : start + 2048]
            last = start + len(part) == len(prompt)
            rows = [(t, start + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)]
            picks = self._step(rows)
        return picks[0]

    def prefill(self, prompt: list[int]) -> float:
        self._open(1, 4096)
        start = time.perf_counter()
        self._prompt(prompt, 0)
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._open(len(prompts), 512)
        tokens = [self._prompt(prompt, i) for i, prompt in enumerate(prompts)]
        seconds = []
        for step in range(steps):
            start = time.perf_counter()
            tokens = self._step([(t, len(prompts[i]) + step, i, True) for i, t in enumerate(tokens)])
            seconds.append(time.perf_counter() - start)
        return seconds

    def features(self) -> str:
        return llama_cpp.llama_print_system_info().decode()

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        self._open(1, 4096)
        out = [self._prompt(prompt, 0)]
        while len(out) < steps:
            out += self._step([(out[-1], len(prompt) + len(out) - 1, 0, True)])
        return out


if __name__ == "__main__":
    answer(lambda: LlamaCpp(sys.argv[1], int(sys.argv[2])))
