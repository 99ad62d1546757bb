"""Paged attention: by the native kernels over their own blocks, else in torch ops.

In torch ops a block is `[K or V, head, token, channel]`, so that one gather of head rows yields `[sequence, head, all tokens,
channel]` ready for the fused attention, with no transposition after it. Query heads are folded into rows of their
key-value head (the fused op's own grouped mode is 9x slower at decode). Decoding sequences of similar length run as
one padded batch; every longer segment runs alone. Only blocks inside the window are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.native import load_error
from ridgepoint.kernels.paged_attention import native
from ridgepoint.kernels.paged_attention.known import Known

PADDING_FRAC = 0.25  # a batch is padded by at most this share of its longest member: beyond, another call is cheaper
NEVER = float("-inf")
READS_ON_HOST = True  # query starts and context lengths, to batch sequences of like length


@dataclass(frozen=True)
class DecodeBatch:
    """Sequences with one query each: their query rows, blocks and the logit mask over them.

    A shorter sequence is padded with its own last block: masked, and never another sequence's numbers (a NaN there
    would pass the mask, since it survives a product with zero)."""

    rows_B: torch.Tensor
    blocks_BN: torch.Tensor
    mask_B1S: torch.Tensor | None  # [B, 1, 1, N block_tokens], 0 or -inf; None when nothing is hidden
    every_row: bool  # rows_B is simply all rows in order


@dataclass(frozen=True)
class Segment:
    """Several queries of one sequence, rows `[start, stop)`, over `blocks_N`; `mask_QS` as above, or plain causal."""

    start: int
    stop: int
    blocks_N: torch.Tensor
    num_keys: int
    mask_QS: torch.Tensor | None


@dataclass
class Plan:
    query_starts_B1: torch.Tensor
    context_lens_B: torch.Tensor
    block_tables_BN: torch.Tensor
    block_tokens: int
    num_seqs: torch.Tensor | None = None  # one int64 that native attention reads; set by `prepare` or a recording
    prompt_lens_B: torch.Tensor | None = None  # native latent attention lifts by it
    by_window: dict[int | None, tuple[list[DecodeBatch], list[Segment]]] = field(default_factory=dict)

    @cached_property
    def query_starts(self) -> list[int]:
        starts: list[int] = self.query_starts_B1.tolist()
        return starts

    @cached_property
    def context_lens(self) -> list[int]:
        lens: list[int] = self.context_lens_B.tolist()
        return lens

    def parts(self, window: int | None) -> tuple[list[DecodeBatch], list[Segment]]:
        """The step's work for layers of this window; built once per step and window."""
        if window not in self.by_window:
            self.by_window[window] = _parts(self, window)
        return self.by_window[window]


def allocate(
    num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    if native.fits(block_tokens, head_dim, dtype, device):
        return native.allocate(num_blocks, block_tokens, num_kv_heads, head_dim, head_dim, dtype)
    refuse_codes(dtype, block_tokens, device)
    return torch.zeros(num_blocks, 2, num_kv_heads, block_tokens, head_dim, dtype=dtype, device=device)


def refuse_codes(dtype: torch.dtype, block_tokens: int, device: torch.device | str) -> None:
    """8-bit caches have scales, which only the native layout has room for."""
    if dtype in native.CODED:
        lost = load_error() or f"not for blocks of {block_tokens} tokens on {device}"
        raise ConfigError(
            f"a KV cache of {str(dtype).removeprefix('torch.')} needs the native kernels: {lost}",
            hint=f"blocks of a multiple of {native.SUB_TOKENS} tokens on the CPU, or a KV cache of bfloat16",
        )


def prepare(
    query_starts_B1: torch.Tensor, context_lens_B: torch.Tensor, block_tables_BN: torch.Tensor, block_tokens: int,
    prompt_lens_B: torch.Tensor | None = None, known: Known | None = None,
) -> Plan:  # fmt: skip
    num_seqs = torch.tensor([context_lens_B.shape[0]]) if context_lens_B.device.type == "cpu" else None
    return Plan(query_starts_B1, context_lens_B, block_tables_BN.long(), block_tokens, num_seqs, prompt_lens_B)


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    if native.is_native(kv):
        native.write(kv, k_TGP, v_TGP, slots_T)
        return
    block_tokens = kv.shape[3]
    block_T, offset_T = slots_T // block_tokens, slots_T % block_tokens
    tokens = kv.permute(1, 0, 3, 2, 4)  # [2, block, token, head, channel], a view
    tokens[0][block_T, offset_T] = k_TGP
    tokens[1][block_T, offset_T] = v_TGP


def attend(
    q_THP: torch.Tensor, kv: torch.Tensor, plan: Plan, scale: float, window: int | None, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    if native.is_native(kv):
        return native.attend(q_THP, kv, plan, scale, window, sinks_H)
    batches, segments = plan.parts(window)
    if len(batches) == 1 and not segments and batches[0].every_row:
        return _decode(q_THP, kv, batches[0], scale, sinks_H)
    out_THP = torch.empty_like(q_THP, memory_format=torch.contiguous_format)
    for batch in batches:
        out_THP[batch.rows_B] = _decode(q_THP.index_select(0, batch.rows_B), kv, batch, scale, sinks_H)
    for segment in segments:
        out_THP[segment.start : segment.stop] = _segment(
            q_THP[segment.start : segment.stop], kv, segment, scale, sinks_H
        )
    return out_THP


def _decode(
    q_BHP: torch.Tensor, kv: torch.Tensor, batch: DecodeBatch, scale: float, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    num_kv_heads = kv.shape[2]
    k_BGSP, v_BGSP = _gather(kv, batch.blocks_BN)
    q_BGRP = q_BHP.unflatten(1, (num_kv_heads, -1))
    sinks = None if sinks_H is None else sinks_H.view(1, num_kv_heads, -1, 1)
    return _attention(q_BGRP, k_BGSP, v_BGSP, batch.mask_B1S, False, scale, sinks).flatten(1, 2)


def _segment(
    q_QHP: torch.Tensor, kv: torch.Tensor, segment: Segment, scale: float, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    num_kv_heads = kv.shape[2]
    k_1GSP, v_1GSP = _gather(kv, segment.blocks_N[None])
    q_GRQP = q_QHP.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
    k, v = (x[0, :, None, : segment.num_keys].expand(-1, q_GRQP.shape[1], -1, -1) for x in (k_1GSP, v_1GSP))
    sinks = None if sinks_H is None else sinks_H.view(num_kv_heads, -1, 1, 1)
    o_GRQP = _attention(q_GRQP, k, v, segment.mask_QS, segment.mask_QS is None, scale, sinks)
    return o_GRQP.permute(2, 0, 1, 3).flatten(1, 2)


def _gather(kv: torch.Tensor, blocks_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of whole blocks as [B, G, N block_tokens, P], one copy each."""
    num_blocks, _, heads, block_tokens, width = kv.shape
    rows = kv.view(num_blocks * 2 * heads, block_tokens * width)
    head_G1 = torch.arange(heads, device=kv.device)[:, None]
    index_BGN = blocks_BN[:, None, :] * (2 * heads) + head_G1
    shape = (blocks_BN.shape[0], heads, blocks_BN.shape[1] * block_tokens, width)
    k = rows.index_select(0, index_BGN.flatten()).view(shape)
    v = rows.index_select(0, (index_BGN + heads).flatten()).view(shape)
    return k, v


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Four-dimensional fused attention. A sink scales the result by `sigmoid(logsumexp - sink)`, which is what one
    more term in the denominator does."""
    if mask is not None:
        mask = mask.to(q.dtype)
    if sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, logsumexp = flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
        return (out * torch.sigmoid(logsumexp[..., None] - sinks.float())).to(q.dtype)
    logits = (q @ k.transpose(-1, -2)).float() * scale
    if causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, NEVER)
    if mask is not None:
        logits = logits + mask
    logits = torch.cat((logits, sinks.float().expand(*logits.shape[:-1], 1)), dim=-1)
    return logits.softmax(-1)[..., :-1].to(v.dtype) @ v


def _parts(plan: Plan, window: int | None) -> tuple[list[DecodeBatch], list[Segment]]:
    starts, size = plan.query_starts, plan.block_tokens
    decode: list[tuple[int, int, int]] = []  # (blocks to read, first block, sequence)
    segments: list[Segment] = []
    for b, context in enumerate(plan.context_lens):
        queries = starts[b + 1] - starts[b]
        if queries == 0:
            continue
        oldest = 0 if window is None else max(0, context - queries + 1 - window)
        first, last = oldest // size, -(-context // size)
        if queries == 1:
            decode.append((last - first, first, b))
        else:
            segments.append(_make_segment(plan, b, first, last, window))
    return [_make_batch(plan, group, window) for group in _groups(decode)], segments


def _groups(decode: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Longest first; a group ends where padding would exceed `PADDING_FRAC`."""
    groups: list[list[tuple[int, int, int]]] = []
    for item in sorted(decode, key=lambda item: (-item[0], item[2])):
        if groups and item[0] >= groups[-1][0][0] * (1 - PADDING_FRAC):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _make_batch(plan: Plan, group: list[tuple[int, int, int]], window: int | None) -> DecodeBatch:
    size, device = plan.block_tokens, plan.block_tables_BN.device
    group = sorted(group, key=lambda item: item[2])
    width = max(blocks for blocks, _, _ in group)
    rows = [plan.query_starts[b] for _, _, b in group]
    blocks_BN = torch.empty(len(group), width, dtype=torch.long, device=device)
    for i, (blocks, first, b) in enumerate(group):
        blocks_BN[i, :blocks] = plan.block_tables_BN[b, first : first + blocks]
        blocks_BN[i, blocks:] = blocks_BN[i, blocks - 1]
    key_S = torch.arange(width * size, device=device)
    first_B1 = torch.tensor([first * size for _, first, _ in group], device=device)[:, None]
    context_B1 = torch.tensor([plan.context_lens[b] for _, _, b in group], device=device)[:, None]
    position_BS = first_B1 + key_S
    hidden = position_BS >= context_B1
    if window is not None:
        hidden |= position_BS < context_B1 - window
    mask = None
    if bool(hidden.any()):
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, NEVER)[:, None, None]
    every_row = rows == list(range(plan.query_starts[-1]))
    return DecodeBatch(torch.tensor(rows, device=device), blocks_BN, mask, every_row)


def _make_segment(plan: Plan, b: int, first: int, last: int, window: int | None) -> Segment:
    device, size, context = plan.block_tables_BN.device, plan.block_tokens, plan.context_lens[b]
    start, stop = plan.query_starts[b], plan.query_starts[b + 1]
    queries, offset = stop - start, first * size
    num_keys = context - offset
    mask = None
    if queries != num_keys or (window is not None and window < num_keys):
        query_Q1 = torch.arange(context - queries, context, device=device)[:, None]
        key_S = torch.arange(offset, context, device=device)
        hidden = key_S > query_Q1
        if window is not None:
            hidden |= key_S <= query_Q1 - window
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, NEVER)
    return Segment(start, stop, plan.block_tables_BN[b, first:last], num_keys, mask)
