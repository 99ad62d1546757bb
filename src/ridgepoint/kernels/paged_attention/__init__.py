"""Attention over a paged key-value cache, and the layout of its blocks.

Whoever computes attention owns the layout: `allocate` makes one layer's blocks, `write` fills slots, `attend` reads.
To everyone else a block is an opaque row of bytes. Slot `s` is token `s % block_tokens` of block `s // block_tokens`.
`prepare` turns one step's sequences into whatever the path wants to know once per step, not once per layer.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.paged_attention.known import Known


def allocate(
    num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """One layer's blocks; the first axis counts blocks and each block is contiguous. `dtype` is what numbers are kept in;
    int8 and float8_e4m3fn are codes with a scale for each token and head."""
    probe = torch.empty(0, device=device)
    out: torch.Tensor = implementation("paged_attention", probe).allocate(
        num_blocks, block_tokens, num_kv_heads, head_dim, dtype, device
    )
    return out


def prepare(
    query_starts_B1: torch.Tensor,
    context_lens_B: torch.Tensor,
    block_tables_BN: torch.Tensor,
    block_tokens: int,
    prompt_lens_B: torch.Tensor | None = None,
    known: Known | None = None,
) -> Any:
    """A step's plan. Sequence b owns query rows `[starts[b], starts[b+1])`, the last of its `context_lens[b]` tokens;
    its tokens live in `block_tables[b]`, of which only the first `ceil(context / block_tokens)` entries are read.
    Its first `prompt_lens[b]` tokens are its prompt (none where nobody says): a path may compute those in another form.
    By what is `known` on the host a path may leave out what would find nothing to do."""
    return implementation("paged_attention", query_starts_B1).prepare(
        query_starts_B1, context_lens_B, block_tables_BN, block_tokens, prompt_lens_B, known
    )


def masks_unwritten(kv: torch.Tensor) -> bool:
    """Whether the path keeps slots that nobody has filled out of its arithmetic. Where it does not (its module has no
    `MASKS_UNWRITTEN`), they are multiplied by zero, which a NaN left there survives: a block's new owner must clear it."""
    return getattr(implementation("paged_attention", kv), "MASKS_UNWRITTEN", False)


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    """Store keys and values of this step's tokens, in place."""
    implementation("paged_attention", k_TGP).write(kv, k_TGP, v_TGP, slots_T)


def attend(
    q_THP: torch.Tensor, kv: torch.Tensor, plan: Any, scale: float, window: int | None, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    """Causal softmax attention of every query over its own sequence: o_THP.

    A query sees its last `window` keys, itself included (None: all). A sink is a logit in the denominator only.
    """
    out: torch.Tensor = implementation("paged_attention", q_THP).attend(q_THP, kv, plan, scale, window, sinks_H)
    return out


def rotate_and_write(
    kv: torch.Tensor, q_THP: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, norms: tuple[torch.Tensor | None, torch.Tensor | None],
    eps: float, tables: tuple[torch.Tensor, torch.Tensor], interleaved: bool, slots_T: torch.Tensor,
) -> torch.Tensor | None:  # fmt: skip
    """`norm_rope` and `write` in one, where the path can: the rotated queries. None: it cannot, and nothing has been done."""
    path = implementation("paged_attention", q_THP)
    if not hasattr(path, "rotate_and_write"):
        return None
    out: torch.Tensor | None = path.rotate_and_write(kv, q_THP, k_TGP, v_TGP, norms, eps, tables, interleaved, slots_T)
    return out
