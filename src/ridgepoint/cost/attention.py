"""FLOPs and cache bytes of the token mixers, per layer and whole (before any sharding), for one group of sequences.

Full attention: a query at position p meets p keys, so q new tokens over c cached meet q (c + q/2) pairs; a window caps it.
MLA runs absorbed (queries carried into latent space, one shared key of C+R) or expanded (every latent raised to H heads);
engines take the cheaper: absorbed for decode, expanded for long prompts. Sparse attention scores every key in a small
indexer and attends to `top_k`.
"""

from __future__ import annotations

from dataclasses import replace

from ridgepoint.cost.arrays import Num, largest, smallest
from ridgepoint.cost.batch import Group
from ridgepoint.cost.memory import kv_bytes_per_token_layer
from ridgepoint.cost.shape import LayerKind


def visible_pairs(new: Num, cached: Num, window: int | None) -> Num:
    """Query-key pairs of one sequence: the integral of min(position, window) over its new positions."""
    if window is None:
        return new * (cached + 0.5 * new)
    start, end = smallest(cached, window), smallest(cached + new, window)
    rising = 0.5 * (end * end - start * start)
    return rising + window * (new - (end - start))


def mixer_flops(kind: LayerKind, group: Group) -> Num:
    """FLOPs beyond the projections' 2 x parameters x tokens, for the whole group: scores, values, indexer, recurrence."""
    if kind.linear:
        extra = kind.linear.flops_per_token - 2.0 * kind.linear.num_params
        return largest(extra, 0.0) * group.count * group.new
    if not (kind.gqa or kind.mla):
        return 0.0
    indexing: Num = 0.0
    top_k: int | None = None
    if kind.indexer:
        pairs = visible_pairs(group.new, group.cached, kind.window)
        indexing = 2.0 * kind.indexer.num_heads * kind.indexer.head_dim * pairs
        top_k = kind.indexer.top_k
    limit = kind.window if top_k is None else (top_k if kind.window is None else min(top_k, kind.window))
    pairs = visible_pairs(group.new, group.cached, limit)
    if kind.gqa:
        core = 2.0 * kind.gqa.num_heads * (kind.gqa.head_dim + kind.gqa.v_head_dim) * pairs
    else:
        mla = kind.mla
        assert mla is not None
        core = 2.0 * mla.num_heads * (2 * mla.kv_rank + mla.rope_dim) * pairs
        if not kind.indexer:
            expanded = 2.0 * mla.num_heads * (mla.nope_dim + mla.rope_dim + mla.v_dim) * pairs
            core = smallest(core, expanded + 2.0 * kind.kv_up_params * group.cached)
    return group.count * (core + indexing)


def cache_read_bytes(kind: LayerKind, group: Group, kv_format: str) -> Num:
    """Cache bytes the group's queries read: cached tokens within sight, once per sequence (its new tokens share the read)."""
    if kind.linear:
        return group.count * kind.linear.state_bytes_per_seq
    own = kind.gqa or kind.mla
    if not own:
        return 0.0
    per_token = _bytes_per_read_token(kind, kv_format)
    seen = group.cached if kind.window is None else smallest(group.cached, kind.window)
    if kind.indexer:
        keys = group.cached * kind.indexer.head_dim
        picked = smallest(group.cached, kind.indexer.top_k * group.new)
        return group.count * (keys + picked * (per_token - kind.indexer.head_dim))
    return group.count * seen * per_token


def cache_write_bytes(kind: LayerKind, group: Group, kv_format: str) -> Num:
    if kind.linear:
        return group.count * kind.linear.state_bytes_per_seq
    return group.count * group.new * kv_bytes_per_token_layer(kind, kv_format)


def _bytes_per_read_token(kind: LayerKind, kv_format: str) -> float:
    """A layer that shares another's cache stores nothing but reads as much."""
    if kind.owns_kv:
        return kv_bytes_per_token_layer(kind, kv_format)
    return kv_bytes_per_token_layer(replace(kind, owns_kv=True), kv_format)
