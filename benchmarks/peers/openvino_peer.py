"""OpenVINO through optimum-intel: FOLDER FORMAT THREADS, FORMAT being bf16, int8 or int4 (group 32).

The checkpoint is converted once into FOLDER.openvino-FORMAT. Batches are decoded by the stateful model itself, one inference a
step: OpenVINO GenAI's continuous batching needs a tokenizer, which a random model does not have.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import openvino
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from peer import answer


def convert(folder: Path, fmt: str) -> Path:
    """The model as OpenVINO's own files, written once."""
    target = folder.with_name(f"{folder.name}.openvino-{fmt}")
    if not (target / "openvino_model.xml").exists():
        quantise = {
            "bf16": None,
            "int8": OVWeightQuantizationConfig(bits=8),
            "int4": OVWeightQuantizationConfig(bits=4, group_size=32, ratio=1.0, all_layers=True),
        }[fmt]
        model = OVModelForCausalLM.from_pretrained(
            folder, export=True, compile=False, load_in_8bit=False, quantization_config=quantise
        )
        model.save_pretrained(target)
    return target


class OpenVino:
    def __init__(self, folder: str, fmt: str, threads: str) -> None:
        model = openvino.Core().read_model(convert(Path(folder), fmt) / "openvino_model.xml")
        options = {
            "INFERENCE_NUM_THREADS": int(threads), "PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": "bf16",
            "INFERENCE_PRECISION_HINT": "bf16",
        }  # fmt: skip
        self.request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def _step(self, tokens_BT: np.ndarray, past: int) -> np.ndarray:
        batch, new = tokens_BT.shape
        inputs = {
            "input_ids": tokens_BT,
            "attention_mask": np.ones((batch, past + new), dtype=np.int64),
            "position_ids": np.broadcast_to(np.arange(past, past + new), (batch, new)).copy(),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self.request.infer(inputs, share_inputs=True)
        return self.request.get_tensor("logits").data[:, -1].argmax(-1).astype(np.int64)

    def _prompt(self, prompts: list[list[int]]) -> np.ndarray:
        self.request.reset_state()
        return self._step(np.array(prompts, dtype=np.int64), 0)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._prompt([prompt])
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        tokens, past, seconds = self._prompt(prompts), len(prompts[0]), []
        for step in range(steps):
            start = time.perf_counter()
            tokens = self._step(tokens[:, None], past + step)
            seconds.append(time.perf_counter() - start)
        return seconds

    def greedy(self, prompt: list[int], steps: int) -> list[int]:
        tokens = self._prompt([prompt])
        out = [int(tokens[0])]
        while len(out) < steps:
            tokens = self._step(tokens[:, None], len(prompt) + len(out) - 1)
            out.append(int(tokens[0]))
        return out


if __name__ == "__main__":
    answer(lambda: OpenVino(*sys.argv[1:4]))
