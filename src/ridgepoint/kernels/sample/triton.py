"""Sampling on GPUs, without a word to the host: what to do with each row is read from tensors beside the logits.

Two looks at the logits by all of the chip (best; masses and what is near the best), then one program a row. A token drawn
depends on its row alone. Penalties, biases and bans are applied to a copy of the logits by what each seat's tables say, and
log-probabilities are read from the logits themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton

from ridgepoint.kernels.sample import torch_ops
from ridgepoint.kernels.sample import triton_kernels as kernels
from ridgepoint.kernels.sample.marks import IN_PROMPT, IS_STOP
from ridgepoint.kernels.triton_call import overlapped

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import DeviceRules, DeviceShaping, Shaping

CHUNK = 8192  # logits a program looks at
ROOM = 256  # logits that a chunk has listed, the best of those near the row's best; where lists do not do, rows are searched
PENALTY_CHUNK = 2048  # fewer, since penalties are float64
WARPS = 8
DRAW_WARPS = 8


def choose_on_device(logits_RV: torch.Tensor, shaping: DeviceShaping | None) -> torch.Tensor:
    num_rows, vocab = logits_RV.shape
    device = logits_RV.device
    ids_R = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return ids_R
    chunks = triton.cdiv(vocab, CHUNK)
    facts = {"V": vocab, "CHUNK": CHUNK, "CHUNKS": chunks}
    padded = {"CHUNKS": chunks, "CHUNKS_2": triton.next_power_of_2(chunks)}

    def of_chunks(dtype: torch.dtype, *rest: int) -> torch.Tensor:
        return torch.empty(num_rows, chunks, *rest, dtype=dtype, device=device)

    best, place = of_chunks(torch.float32), of_chunks(torch.int32)
    stride = logits_RV.stride(0)
    kernels.scan_chunks[(chunks, num_rows)](logits_RV, best, place, stride, **facts, num_warps=WARPS, **overlapped())
    if shaping is None:
        kernels.take_best[(num_rows,)](best, place, ids_R, **padded, num_warps=1, **overlapped())
        return ids_R
    mass, kept, bound, num_near = (of_chunks(d) for d in (torch.int64, torch.int64, torch.int32, torch.int32))
    num_heavy, lightest = of_chunks(torch.int32), of_chunks(torch.int32)
    near = of_chunks(torch.float32, ROOM)
    kernels.weigh_chunks[(chunks, num_rows)](
        logits_RV, best, mass, kept, near, num_near, bound, num_heavy, lightest, shaping.temperature_R, shaping.min_p_R, stride,
        **(facts | padded), ROOM=ROOM, num_warps=WARPS, **overlapped(),
    )  # fmt: skip
    kernels.draw[(num_rows,)](
        logits_RV, best, place, mass, kept, near, num_near, bound, num_heavy, lightest, shaping.temperature_R, shaping.top_k_R, shaping.top_p_R,
        shaping.min_p_R, shaping.uniform_R, ids_R, stride, **(facts | padded), ROOM=ROOM, num_warps=DRAW_WARPS, **overlapped(),
    )  # fmt: skip
    return ids_R


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    from ridgepoint.kernels.sample import DeviceShaping

    if shaping is None:
        return choose_on_device(logits_RV, None)
    columns = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in vars(shaping).items()}
    wanted = {name: torch.int64 if name == "top_k_R" else torch.float64 for name in columns}
    moved = {name: column.to(logits_RV.device, wanted[name]) for name, column in columns.items()}
    return choose_on_device(logits_RV, DeviceShaping(**moved))


def uniforms_on_device(seeds_R: torch.Tensor, indices_R: torch.Tensor) -> torch.Tensor:
    """`random.uniforms` of int64 tensors, bit for bit: a row's number depends on its seed and index alone."""
    uniform_R = torch.empty(seeds_R.shape, dtype=torch.float64, device=seeds_R.device)
    if len(seeds_R):
        rows = 128
        kernels.uniform_numbers[(triton.cdiv(len(seeds_R), rows),)](
            seeds_R,
            indices_R,
            uniform_R,
            len(seeds_R),
            ROWS=rows,
            **overlapped(),
        )
    return uniform_R


def edit_on_device(logits_RV: torch.Tensor, rules: DeviceRules) -> torch.Tensor:
    num_rows, vocab = logits_RV.shape
    out_RV = torch.empty(num_rows, vocab, dtype=torch.float32, device=logits_RV.device)
    if num_rows:
        kernels.edit_chunks[(triton.cdiv(vocab, PENALTY_CHUNK), num_rows)](
            logits_RV, out_RV, rules.counts_SV, rules.addends_SV, rules.seats_R, rules.banned_R, rules.repetition_R,
            rules.presence_R, rules.frequency_R, logits_RV.stride(0), V=vocab, CHUNK=PENALTY_CHUNK, IN_PROMPT=IN_PROMPT,
            IS_STOP=IS_STOP, num_warps=WARPS, **overlapped(),
        )  # fmt: skip
    return out_RV


def count_on_device(counts_SV: torch.Tensor, seats_R: torch.Tensor, ids_R: torch.Tensor) -> None:
    if len(ids_R):
        kernels.count_tokens[(len(ids_R),)](
            counts_SV, seats_R, ids_R, V=counts_SV.shape[1], num_warps=1, **overlapped()
        )


def score_on_device(
    logits_RV: torch.Tensor, ids_R: torch.Tensor, num_top_R: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, vocab = logits_RV.shape
    device, chunks = logits_RV.device, triton.cdiv(vocab, CHUNK)
    chosen_R = torch.empty(num_rows, dtype=torch.float32, device=device)
    top_ids_RN = torch.empty(num_rows, most, dtype=torch.int64, device=device)
    top_RN = torch.empty(num_rows, most, dtype=torch.float32, device=device)
    if num_rows == 0:
        return chosen_R, top_ids_RN, top_RN
    # Apart: a part of one tensor would be aligned for some numbers of rows only, and the kernels compiled for both.
    best_RC, total_RC = (torch.empty(num_rows, chunks, dtype=torch.float32, device=device) for _ in range(2))
    values_RCN = torch.empty(num_rows, chunks, most, dtype=torch.float32, device=device)
    found_RCN = torch.empty(num_rows, chunks, most, dtype=torch.int32, device=device)
    stride = logits_RV.stride(0)
    kernels.list_tops[(chunks, num_rows)](
        logits_RV, num_top_R, best_RC, total_RC, values_RCN, found_RCN, stride, V=vocab, CHUNK=CHUNK, CHUNKS=chunks, MOST=most,
        num_warps=WARPS, **overlapped(),
    )  # fmt: skip
    kernels.join_tops[(num_rows,)](
        logits_RV, ids_R, num_top_R, best_RC, total_RC, values_RCN, found_RCN, chosen_R, top_ids_RN, top_RN, stride, V=vocab,
        CHUNKS=chunks, CHUNKS_2=triton.next_power_of_2(chunks), MOST=most, MOST_2=triton.next_power_of_2(max(1, most)),
        num_warps=4, **overlapped(),
    )  # fmt: skip
    return chosen_R, top_ids_RN, top_RN


penalise = torch_ops.penalise
log_probabilities = torch_ops.log_probabilities
