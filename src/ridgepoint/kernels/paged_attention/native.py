"""Paged attention by the native kernels, over bf16 blocks in the layout of packed weights.

A layer's blocks are `[block, KV head, 16 tokens, bytes of both]`; within the last axis keys are [P / 2][16][2] and
values [8][P rounded up to 16][2], so a tile of queries multiplies them as it multiplies a weight.
"""

from __future__ import annotations

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import address, call, copied, empty, rows

SUB_TOKENS = 16


def fits(block_tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether blocks of this kind can be kept in the native layout."""
    on_cpu = torch.device(device).type == "cpu"
    return (
        on_cpu
        and dtype == torch.bfloat16
        and block_tokens % SUB_TOKENS == 0
        and head_dim % 2 == 0
        and native.available()
    )


def allocate(num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> torch.Tensor:
    padded = -(-head_dim // 16) * 16
    shape = (num_blocks, num_kv_heads, block_tokens // SUB_TOKENS, SUB_TOKENS * (head_dim + padded))
    return torch.zeros(shape, dtype=torch.bfloat16)


def is_native(kv: torch.Tensor) -> bool:
    return kv.dim() == 4


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    k_TGP, v_TGP, slots_T = rows(k_TGP), rows(v_TGP), _int64(slots_T)
    call(
        native.KvWriteOp, k_TGP.shape[0], k=address(k_TGP), v=address(v_TGP), slots=address(slots_T),
        cache=address(kv), block_bytes=kv.stride(0) * 2, block_size=kv.shape[2] * SUB_TOKENS, heads=kv.shape[1],
        head_dim=k_TGP.shape[2], v_dim=v_TGP.shape[2], k_stride=k_TGP.stride(0), v_stride=v_TGP.stride(0),
    )  # fmt: skip


def attend(
    q_THP: torch.Tensor,
    kv: torch.Tensor,
    query_starts_B1: torch.Tensor,
    context_lens_B: torch.Tensor,
    block_tables_BN: torch.Tensor,
    num_seqs: torch.Tensor,
    scale: float,
    window: int | None,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    q_THP = rows(q_THP)
    num_heads, width = q_THP.shape[1:]
    out_THP = empty(*q_THP.shape, dtype=q_THP.dtype)
    if sinks_H is not None and sinks_H.dtype != torch.float32:
        sinks_H = copied(sinks_H.float(), "sinks that are not float32")
    starts, contexts, tables = _int64(query_starts_B1), _int64(context_lens_B), _int64(block_tables_BN)
    call(
        native.AttentionOp, q_THP.shape[0], q=address(q_THP), y=address(out_THP), cache=address(kv),
        query_starts=address(starts), context_lens=address(contexts),
        block_tables=address(tables), sinks=address(sinks_H), num_seqs=address(num_seqs), block_bytes=kv.stride(0) * 2,
        block_size=kv.shape[2] * SUB_TOKENS, table_stride=tables.stride(0), heads=num_heads, kv_heads=kv.shape[1],
        head_dim=width, v_dim=width, q_stride=q_THP.stride(0), y_stride=out_THP.stride(0), window=window or 0, scale=scale,
    )  # fmt: skip
    return out_THP


def _int64(tensor: torch.Tensor) -> torch.Tensor:
    return rows(tensor) if tensor.dtype == torch.int64 else copied(tensor.long(), "an index that is not int64")
