"""FLOPs and cache bytes of the token mixers, per layer and whole (before any sharding), for one group of sequences.

Full attention: a query at position p meets p keys, so q new tokens over c cached meet q (c + q/2) pairs; a window caps it.
MLA runs absorbed (queries carried into latent space, one shared key of C+R) or expanded (every latent raised to H heads);
engines take the cheaper: absorbed for decode, expanded for long prompts. Sparse attention scores every key in a small
indexer and attends to the best; a compressed cache holds one entry for `ratio` tokens beyond the window.
"""

from __future__ import annotations

from ridgepoint.cost.arrays import Num, largest, smallest
from ridgepoint.cost.batch import Group
from ridgepoint.cost.memory import entry_bytes, index_key_bytes, written_bytes
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
    if kind.compressed:
        return _compressed_flops(kind, group)
    if not (kind.gqa or kind.mla):
        return 0.0
    indexing: Num = 0.0
    limit = kind.window
    if kind.indexer:
        pairs = visible_pairs(group.new, group.cached, kind.window)
        indexing = 2.0 * kind.indexer.num_heads * kind.indexer.head_dim * pairs
        chosen = kind.indexer.top_k * kind.indexer.block
        limit = chosen if limit is None else min(chosen, limit)
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


def _compressed_flops(kind: LayerKind, group: Group) -> Num:
    """The window's tokens, then one entry for every `ratio` tokens: all of them, or those the indexer picks."""
    mixer = kind.compressed
    assert mixer is not None
    pairs = visible_pairs(group.new, group.cached, kind.window)
    indexing: Num = 0.0
    if mixer.ratio is not None:
        limit = None
        if kind.indexer:
            scored = visible_pairs(group.new, group.cached, None) / mixer.ratio
            indexing = 2.0 * kind.indexer.num_heads * kind.indexer.head_dim * scored
            limit = kind.indexer.top_k * mixer.ratio
        pairs = pairs + visible_pairs(group.new, group.cached, limit) / mixer.ratio
    return group.count * (4.0 * mixer.num_heads * mixer.head_dim * pairs + indexing)


def cache_read_bytes(kind: LayerKind, group: Group, kv_format: str) -> Num:
    """Cache bytes the group's queries read: entries within sight, once per sequence (its new tokens share the read). A layer that
    shares another's cache stores nothing but reads as much."""
    if kind.linear:
        return group.count * float(kind.linear.state_bytes_per_seq + kind.linear.conv_bytes_per_seq)
    entry = entry_bytes(kind, kv_format)
    if not entry:
        return 0.0
    seen: Num = group.cached if kind.window is None else smallest(group.cached, kind.window)
    if kind.compressed:
        entries = group.cached / kind.compressed.ratio if kind.compressed.ratio else 0.0
        return group.count * (seen * entry + _picked_bytes(kind, group, entries, entry, kv_format))
    return group.count * _picked_bytes(kind, group, seen, entry, kv_format)


def _picked_bytes(kind: LayerKind, group: Group, entries: Num, entry: float, kv_format: str) -> Num:
    """All `entries`, or every indexer key and the entries it picks for any of the new tokens."""
    if not kind.indexer:
        return entries * entry
    picked = smallest(entries, kind.indexer.top_k * kind.indexer.block * group.new)
    return entries * index_key_bytes(kind, kv_format) + picked * entry


def cache_write_bytes(kind: LayerKind, group: Group, kv_format: str) -> Num:
    if kind.linear:
        return group.count * float(kind.linear.state_bytes_per_seq + kind.linear.conv_bytes_per_seq)
    return group.count * group.new * written_bytes(kind, kv_format)
