"""Definition of paged attention: one query and one head at a time, keys fetched token by token in float32 or better."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgepoint.kernels.paged_attention.known import Known


@dataclass(frozen=True)
class Plan:
    query_starts: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    block_tokens: int


def allocate(
    num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    return torch.zeros(num_blocks, 2, num_kv_heads, block_tokens, head_dim, dtype=dtype, device=device)


def prepare(
    query_starts_B1: torch.Tensor, context_lens_B: torch.Tensor, block_tables_BN: torch.Tensor, block_tokens: int,
    prompt_lens_B: torch.Tensor | None = None, known: Known | None = None,
) -> Plan:  # fmt: skip
    return Plan(query_starts_B1.tolist(), context_lens_B.tolist(), block_tables_BN.tolist(), block_tokens)


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    block_tokens = kv.shape[3]
    for t, slot in enumerate(slots_T.tolist()):
        kv[slot // block_tokens, 0, :, slot % block_tokens] = k_TGP[t]
        kv[slot // block_tokens, 1, :, slot % block_tokens] = v_TGP[t]


def attend(
    q_THP: torch.Tensor, kv: torch.Tensor, plan: Plan, scale: float, window: int | None, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    wide = torch.float64 if q_THP.dtype == torch.float64 else torch.float32
    heads_per_group = q_THP.shape[1] // kv.shape[2]
    out_THP = torch.zeros_like(q_THP)
    for b, context in enumerate(plan.context_lens):
        start, stop = plan.query_starts[b], plan.query_starts[b + 1]
        for t in range(start, stop):
            position = context - (stop - t)
            first = 0 if window is None else max(0, position - window + 1)
            cells = [divmod(j, plan.block_tokens) for j in range(first, position + 1)]
            tokens = torch.stack([kv[plan.block_tables[b][n], :, :, i] for n, i in cells]).to(wide)  # [keys, 2, G, P]
            for h in range(q_THP.shape[1]):
                keys, values = tokens[:, 0, h // heads_per_group], tokens[:, 1, h // heads_per_group]
                logits = keys @ q_THP[t, h].to(wide) * scale
                if sinks_H is not None:
                    logits = torch.cat((logits, sinks_H[h : h + 1].to(wide)))
                weights = logits.softmax(-1)[: len(cells)]
                out_THP[t, h] = (weights @ values).to(q_THP.dtype)
    return out_THP
