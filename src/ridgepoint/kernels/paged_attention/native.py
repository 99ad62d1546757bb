"""Paged attention by the native kernels, over blocks in the layout of packed weights (`csrc/ops/kv.h`).

A layer's blocks are `[block, KV head, 16 tokens, bytes of both]`. The tensor's dtype is the format that numbers are kept
in: bfloat16, float32, or int8 and float8_e4m3fn codes with a float32 scale for each token and head.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, copied, empty, rows

SUB_TOKENS = 16
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 5}
CODED = (torch.int8, torch.float8_e4m3fn)


def fits(block_tokens: int, key_dim: int, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether blocks of this kind can be kept in the native layout."""
    plain = torch.device(device).type == "cpu" and dtype in FORMATS
    return plain and block_tokens % SUB_TOKENS == 0 and key_dim % 2 == 0 and native.available()


def allocate(
    num_blocks: int, block_tokens: int, num_kv_heads: int, key_dim: int, v_dim: int, dtype: torch.dtype
) -> torch.Tensor:
    """`v_dim` 0: the values are channels of the keys (MLA). Memory is taken as blocks are first written."""
    key_bytes = key_dim * SUB_TOKENS * dtype.itemsize
    key_bytes = -(-key_bytes // 64) * 64
    value_bytes = -(-v_dim // 16) * 16 * SUB_TOKENS * dtype.itemsize
    sub_bytes = (2 * SUB_TOKENS * 4 if dtype in CODED else 0) + key_bytes + value_bytes
    shape = (num_blocks, num_kv_heads, block_tokens // SUB_TOKENS, sub_bytes)
    memory = native.reserve(num_blocks * num_kv_heads * (block_tokens // SUB_TOKENS) * sub_bytes)
    return torch.from_numpy(memory).view(shape).view(dtype)


def is_native(kv: torch.Tensor) -> bool:
    return kv.dim() == 4


def block_fields(kv: torch.Tensor) -> dict[str, Any]:
    """What both operators want to know about a cache."""
    return {
        "block_bytes": kv.stride(0) * kv.element_size(), "block_size": kv.shape[2] * SUB_TOKENS, "format": FORMATS[kv.dtype],
    }  # fmt: skip


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    k_TGP, v_TGP, slots_T = rows(k_TGP), rows(v_TGP), int64(slots_T)
    call(
        native.KvWriteOp, k_TGP.shape[0], k=address(k_TGP), v=address(v_TGP), slots=address(slots_T), cache=address(kv),
        num_slots=kv.shape[0] * kv.shape[2] * SUB_TOKENS, heads=kv.shape[1], key_dim=k_TGP.shape[2], v_dim=v_TGP.shape[2],
        k_stride=k_TGP.stride(0), v_stride=v_TGP.stride(0), dtype=DTYPES[k_TGP.dtype], **block_fields(kv),
    )  # fmt: skip


def attend(
    q_THP: torch.Tensor, kv: torch.Tensor, plan: Any, scale: float, window: int | None, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    q_THP = rows(q_THP)
    num_heads, width = q_THP.shape[1:]
    out_THP = empty(*q_THP.shape, dtype=q_THP.dtype)
    if sinks_H is not None and sinks_H.dtype != torch.float32:
        sinks_H = copied(sinks_H.float(), "sinks that are not float32")
    call(
        native.AttentionOp, q_THP.shape[0], q=address(q_THP), y=address(out_THP), sinks=address(sinks_H), heads=num_heads,
        kv_heads=kv.shape[1], key_dim=width, v_dim=width, q_stride=q_THP.stride(0), q_head_stride=q_THP.stride(1), y_stride=out_THP.stride(0),
        dtype=DTYPES[q_THP.dtype], **reading(kv, plan, scale, window),
    )  # fmt: skip
    return out_THP


def reading(kv: torch.Tensor, plan: Any, scale: float, window: int | None) -> dict[str, Any]:
    """What the operator wants to know besides queries and widths."""
    if not scale > 0:
        raise ConfigError(f"native attention needs a positive scale, got {scale}")
    starts, contexts, tables = map(int64, (plan.query_starts_B1, plan.context_lens_B, plan.block_tables_BN))
    return {
        "cache": address(kv), "query_starts": address(starts), "context_lens": address(contexts),
        "block_tables": address(tables), "table_stride": tables.stride(0), "num_seqs": address(plan.num_seqs),
        "window": window or 0, "scale": scale, **block_fields(kv),
    }  # fmt: skip


def int64(tensor: torch.Tensor) -> torch.Tensor:
    return rows(tensor) if tensor.dtype == torch.int64 else copied(tensor.long(), "an index that is not int64")


def stored(kv: torch.Tensor, key_dim: int, v_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a cache holds, as float32 [slot, head, channel]: keys without scales, values (empty for a latent cache), and the
    two scales of each slot and head (ones where the format has none). The plain reading of `csrc/ops/kv.h`."""
    blocks, num_heads, subs, _ = kv.shape
    raw = kv.view(torch.uint8).reshape(blocks, num_heads, subs, -1)
    size, lead = kv.element_size(), 128 if kv.dtype in CODED else 0
    key_bytes = -(-key_dim * SUB_TOKENS * size // 64) * 64
    padded = -(-v_dim // 16) * 16
    keys = _numbers(raw[..., lead : lead + key_dim * SUB_TOKENS * size], kv.dtype)
    values = _numbers(raw[..., lead + key_bytes : lead + key_bytes + padded * SUB_TOKENS * size], kv.dtype)
    if kv.dtype == torch.float32:
        keys = keys.unflatten(-1, (key_dim, SUB_TOKENS)).transpose(-1, -2)
        values = values.unflatten(-1, (SUB_TOKENS, padded))
    else:
        keys = keys.unflatten(-1, (key_dim // 2, SUB_TOKENS, 2)).transpose(3, 4).flatten(4)
        values = values.unflatten(-1, (SUB_TOKENS // 2, padded, 2)).transpose(-1, -2).flatten(3, 4)
    scales = torch.ones(blocks, num_heads, subs, 2, SUB_TOKENS)
    if lead:
        scales = raw[..., :lead].contiguous().view(torch.float32).unflatten(-1, (2, SUB_TOKENS))
    by_slot = [x.permute(0, 2, 3, 1, 4).flatten(0, 2) for x in (keys, values[..., :v_dim], scales.transpose(-1, -2))]
    return by_slot[0], by_slot[1], by_slot[2]


def _numbers(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    raw = raw.contiguous()
    if dtype == torch.int8:  # sign and magnitude
        return torch.where(raw < 128, raw.float(), -(raw & 127).float())
    return raw.view(dtype).float()
