"""Shapes and random numbers that the GPU suite's sections on single operators share, and what the tree under test can do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ridgepoint.kernels import dispatch, paged_attention
from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.kernels.sample import DeviceShaping

FORMATS = ("fp8", "fp8-a8", "int8", "int4-32", "mxfp4")
BLOCK = 16
To = Callable[[torch.Tensor], torch.Tensor]  # where a case wants its tensors


def packs_weights() -> bool:
    return importlib.util.find_spec("ridgepoint.kernels.device_weight") is not None


def reads_packed_weights(device: torch.device) -> bool:
    """Whether the experts' path on this device is Triton's, which alone reads them, and leaves rows unsummed."""
    return dispatch.implementation("moe_experts", torch.empty(0, device=device)).__name__.endswith(".triton")


_fresh = 0  # joins every seed


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_fresh * 104_729 + seed * 7919 + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).bfloat16()


def draw_afresh(seed: int) -> None:
    """From here on `normal` gives other numbers."""
    global _fresh
    _fresh = seed


class PagedStep:
    """Sequences scattered over shuffled blocks: `contexts[b]` tokens each, the last `queries[b]` of them asking."""

    def __init__(self, contexts: Sequence[int], queries: Sequence[int]) -> None:
        widest = -(-max(contexts) // BLOCK)
        self.num_blocks = len(contexts) * widest + 1
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(len(contexts)))
        self.tables = order[: len(contexts) * widest].view(len(contexts), widest)
        self.contexts, self.starts = torch.tensor(contexts), torch.tensor([0, *queries]).cumsum(0)
        position = torch.cat([torch.arange(count) for count in contexts])
        sequence = torch.repeat_interleave(torch.arange(len(contexts)), self.contexts)
        self.all_slots = self.tables[sequence, position // BLOCK] * BLOCK + position % BLOCK
        self.known = Known(min(queries), max(c - q for c, q in zip(contexts, queries, strict=True)))

    def plan(self, to: To) -> Any:
        """As a step that is not replayed has it."""
        return paged_attention.prepare(to(self.starts), to(self.contexts), to(self.tables), BLOCK, known=self.known)


def choices(tokens: int, experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of `top_k` distinct experts for each token, uniformly, and weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    return scores.topk(top_k).indices, torch.rand(tokens, top_k, generator=generator).softmax(-1)


def shaping_for(rows: int, generator: torch.Generator) -> DeviceShaping:
    """A little of everything: greedy rows, temperatures, top-k, top-p, min-p."""

    def pick(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[torch.arange(rows) % len(values)]

    return DeviceShaping(
        temperature_R=pick([0.0, 0.7, 1.0]), top_k_R=pick([0, 20]).long(), top_p_R=pick([1.0, 0.9, 0.95, 1.0, 0.5]),
        min_p_R=pick([0.0, 0.0, 0.0, 0.05]), uniform_R=torch.rand(rows, dtype=torch.float64, generator=generator),
    )  # fmt: skip
