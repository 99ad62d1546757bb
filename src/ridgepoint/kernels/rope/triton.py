# mypy: disallow-untyped-defs=False
"""The rotation on GPUs; queries and keys together, behind their norms, in one launch, which may also be the one that puts keys
and values into a paged cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.rope import cpu
from ridgepoint.kernels.triton_call import after_previous, on_device, overlapped, wants_gradient

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
HEADS = 8  # rotated by one program


def rope_tables(
    positions_T: torch.Tensor, inv_freq_F: torch.Tensor, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """In torch ops: once a step, and in exactly the arithmetic that models were trained with."""
    return cpu.rope_tables(positions_T, inv_freq_F, magnitude)


def rope(x_THP: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if not _serves(x_THP, cos_TF, sin_TF):
        return cpu.rope(x_THP, cos_TF, sin_TF, interleaved)
    return _rotate(x_THP, None, None, None, 0.0, cos_TF, sin_TF, interleaved)[0]


def norm_rope(
    q_THP: torch.Tensor,
    k_TGP: torch.Tensor,
    q_weight_P: torch.Tensor | None,
    k_weight_P: torch.Tensor | None,
    eps: float,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = [weight for weight in (q_weight_P, k_weight_P) if weight is not None]
    if not _serves(q_THP, cos_TF, sin_TF) or not _serves(k_TGP, *weights) or q_THP.dtype != k_TGP.dtype:
        return cpu.norm_rope(q_THP, k_TGP, q_weight_P, k_weight_P, eps, cos_TF, sin_TF, interleaved)
    q_THP, rotated = _rotate(q_THP, k_TGP, q_weight_P, k_weight_P, eps, cos_TF, sin_TF, interleaved)
    assert rotated is not None
    return q_THP, rotated


def norm_rope_store(
    q_THP: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, q_weight_P: torch.Tensor | None,
    k_weight_P: torch.Tensor | None, eps: float, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool,
    kv: torch.Tensor, slots_T: torch.Tensor,
) -> torch.Tensor | None:  # fmt: skip
    """`norm_rope` with the keys, and the values as they are, stored in blocks `[2, heads, tokens, channels]` of the same type;
    returns the queries. None where this cannot serve, and then nothing has been done."""
    weights = [weight for weight in (q_weight_P, k_weight_P) if weight is not None]
    alike = q_THP.dtype == k_TGP.dtype == v_TGP.dtype == kv.dtype and kv.dim() == 5
    if not alike or not _serves(q_THP, cos_TF, sin_TF) or not _serves(k_TGP, v_TGP, *weights):
        return None
    v_TGP = v_TGP if v_TGP.stride(2) == 1 else v_TGP.contiguous()
    return _rotate(q_THP, k_TGP, q_weight_P, k_weight_P, eps, cos_TF, sin_TF, interleaved, (v_TGP, kv, slots_T))[0]


def _serves(x: torch.Tensor, *others: torch.Tensor) -> bool:
    tensors = (x, *others)
    return all(t.dtype in FLOATS for t in tensors) and on_device(*tensors) and not wants_gradient(*tensors)


def _rotate(
    q_THP: torch.Tensor,
    k_TGP: torch.Tensor | None,
    q_weight_P: torch.Tensor | None,
    k_weight_P: torch.Tensor | None,
    eps: float,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    interleaved: bool,
    stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`stored` are the values, the blocks that keys and values go to, and the cell of each token."""
    q_THP = q_THP if q_THP.stride(2) == 1 else q_THP.contiguous()
    k = q_THP if k_TGP is None else k_TGP if k_TGP.stride(2) == 1 else k_TGP.contiguous()
    cos_TF, sin_TF = cos_TF.contiguous(), sin_TF.contiguous()
    num_tokens, num_heads, width = q_THP.shape
    num_kv_heads = 0 if k_TGP is None else k.shape[1]
    q_out = torch.empty(q_THP.shape, dtype=q_THP.dtype, device=q_THP.device)
    v, kv, slots = stored or (q_THP, q_THP, q_THP)
    k_out = (
        None if k_TGP is None else kv if stored is not None else torch.empty(k.shape, dtype=k.dtype, device=k.device)
    )
    half = cos_TF.shape[1]
    if q_out.numel():
        kv_blocks = triton.cdiv(num_kv_heads, HEADS) * (2 if stored else 1)
        rotate_heads[(num_tokens, triton.cdiv(num_heads, HEADS) + kv_blocks)](
            q_THP, k, q_out, q_out if k_out is None else k_out, q_THP if q_weight_P is None else q_weight_P,
            k if k_weight_P is None else k_weight_P, cos_TF, sin_TF, q_THP.stride(0), q_THP.stride(1), k.stride(0),
            k.stride(1), eps, v, slots, v.stride(0), v.stride(1), H=num_heads, G=num_kv_heads, P=width, HALF=half, BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_REST=triton.next_power_of_2(width - 2 * half), HEADS=HEADS, INTERLEAVED=interleaved,
            NORM=q_weight_P is not None, PAGE=kv.shape[3] if stored else 0, BLOCK_P=triton.next_power_of_2(width), num_warps=2, **overlapped(),
        )  # fmt: skip
    return q_out, k_out


@triton.jit
def _weighted(x_NF, inverse_N, weight_ptr, at_F, live_F, NORM: tl.constexpr):
    """float32 of the normalised channels, rounded as a norm of its own would have stored them."""
    wide_NF = x_NF.to(tl.float32)
    if NORM:
        weight_F = tl.load(weight_ptr + at_F, mask=live_F, other=0).to(tl.float32)
        wide_NF = (wide_NF * inverse_N[:, None] * weight_F[None, :]).to(x_NF.dtype).to(tl.float32)
    return wide_NF


@triton.jit
def rotate_heads(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_stride, q_head_stride, k_stride,
    k_head_stride, eps, v_ptr, slots_ptr, v_stride, v_head_stride, H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program (t, block): HEADS query heads, or after those key heads, of token t. With a PAGE keys go to cells of that many
    tokens to a block, and further programs take the values there; a negative slot is padding."""
    after_previous()
    t, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    QUERY_BLOCKS: tl.constexpr = (H + HEADS - 1) // HEADS
    x_ptr, out_ptr, weight_ptr, stride, head_stride, num_heads = (
        q_ptr,
        q_out_ptr,
        q_weight_ptr,
        q_stride,
        q_head_stride,
        H,
    )
    is_key = block >= QUERY_BLOCKS
    if is_key:
        x_ptr, out_ptr, weight_ptr, stride, head_stride, num_heads = (
            k_ptr, k_out_ptr, k_weight_ptr, k_stride, k_head_stride, G,
        )  # fmt: skip
        block -= QUERY_BLOCKS
    head_N = block * HEADS + tl.arange(0, HEADS)
    live_N = head_N < num_heads
    out_N = out_ptr + (t * num_heads + head_N) * P
    if PAGE > 0:
        KEY_BLOCKS: tl.constexpr = (G + HEADS - 1) // HEADS
        if is_key:
            slot = tl.load(slots_ptr + t).to(tl.int64)
            is_value = block >= KEY_BLOCKS
            plane = is_value.to(tl.int32)
            head_N -= plane * KEY_BLOCKS * HEADS
            live_N = head_N < tl.where(slot >= 0, G, 0)
            cell_N = ((slot // PAGE * 2 + plane) * G + head_N) * PAGE + slot % PAGE
            out_N = out_ptr + cell_N * P
            if is_value:
                p_P = tl.arange(0, BLOCK_P)
                live_NP = live_N[:, None] & (p_P < P)[None, :]
                v_NP = tl.load(
                    v_ptr + t * v_stride + (head_N * v_head_stride)[:, None] + p_P[None, :], mask=live_NP, other=0
                )
                tl.store(out_N[:, None] + p_P[None, :], v_NP, mask=live_NP)
                live_N = head_N < 0  # nothing to rotate
    i_F = tl.arange(0, BLOCK_HALF)
    live_F = i_F < HALF
    live_NF = live_N[:, None] & live_F[None, :]
    first_F, second_F = (2 * i_F, 2 * i_F + 1) if INTERLEAVED else (i_F, i_F + HALF)
    row_N = x_ptr + t * stride + head_N * head_stride
    a_NF = tl.load(row_N[:, None] + first_F[None, :], mask=live_NF, other=0)
    b_NF = tl.load(row_N[:, None] + second_F[None, :], mask=live_NF, other=0)
    rest_R = 2 * HALF + tl.arange(0, BLOCK_REST if BLOCK_REST > 0 else 1)
    live_R = rest_R < P
    live_NR = live_N[:, None] & live_R[None, :]
    if BLOCK_REST > 0:
        rest_NR = tl.load(row_N[:, None] + rest_R[None, :], mask=live_NR, other=0)
    inverse_N = tl.full((HEADS,), 1.0, tl.float32)
    if NORM:
        wide_a_NF, wide_b_NF = a_NF.to(tl.float32), b_NF.to(tl.float32)
        squares_N = tl.sum(wide_a_NF * wide_a_NF + wide_b_NF * wide_b_NF, 1)
        if BLOCK_REST > 0:
            wide_NR = rest_NR.to(tl.float32)
            squares_N += tl.sum(wide_NR * wide_NR, 1)
        inverse_N = tl.rsqrt(squares_N / P + eps)
    cos_F = tl.load(cos_ptr + t * HALF + i_F, mask=live_F, other=0)[None, :]
    sin_F = tl.load(sin_ptr + t * HALF + i_F, mask=live_F, other=0)[None, :]
    a = _weighted(a_NF, inverse_N, weight_ptr, first_F, live_F, NORM)
    b = _weighted(b_NF, inverse_N, weight_ptr, second_F, live_F, NORM)
    tl.store(out_N[:, None] + first_F[None, :], (a * cos_F - b * sin_F).to(a_NF.dtype), mask=live_NF)
    tl.store(out_N[:, None] + second_F[None, :], (b * cos_F + a * sin_F).to(a_NF.dtype), mask=live_NF)
    if BLOCK_REST > 0:
        rest = _weighted(rest_NR, inverse_N, weight_ptr, rest_R, live_R, NORM)
        tl.store(out_N[:, None] + rest_R[None, :], rest.to(rest_NR.dtype), mask=live_NR)
