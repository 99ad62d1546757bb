"""Attention's view of the past. A layer hands over what it made of this step's tokens; the context knows the rest.

One dataclass per kind of attention says what is handed over, so that a further argument is a field here, set by its layer
and read by the contexts that care. `CausalContext` is the plain one: whole sequences of one length, nothing cached,
differentiable, and the slow twin of the others. Tensors are flat in tokens; only a context knows how they form sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from ridgepoint.catalog.spec import GqaSpec, MlaSpec
from ridgepoint.kernels.norm import rms_norm
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.rope import norm_rope

Tables = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of the step's positions


@dataclass(frozen=True, kw_only=True, slots=True)
class GqaInputs:
    """One layer's queries, keys and values before the norm of each head (`norms`: the weights of both, or neither) and
    before rotation (`tables` None: there is none), because a context may do both while it stores.

    `window` is the number of keys a query sees, itself included (None: all). A sink is a logit in the denominator only.
    """

    layer: int
    mixer: GqaSpec
    window: int | None
    q_THP: torch.Tensor
    k_TGP: torch.Tensor
    v_TGV: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor] | None
    eps: float
    tables: Tables | None
    sinks_H: torch.Tensor | None

    @property
    def interleaved(self) -> bool:
        return self.mixer.rope is not None and self.mixer.rope.interleaved

    def normed_and_rotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys as they meet."""
        q_weight_P, k_weight_P = self.norms or (None, None)
        if self.tables is not None:
            return norm_rope(self.q_THP, self.k_TGP, q_weight_P, k_weight_P, self.eps, *self.tables, self.interleaved)
        if q_weight_P is None or k_weight_P is None:
            return self.q_THP, self.k_TGP
        return rms_norm(self.q_THP, q_weight_P, self.eps), rms_norm(self.k_TGP, k_weight_P, self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaInputs:
    """One layer's queries, latents and shared rotary keys, normed and rotated, with the matrices that lift a latent: keys
    are `w_uk @ latent` beside the rotary key, values `w_uv @ latent`."""

    layer: int
    mixer: MlaSpec
    window: int | None
    q_nope_THN: torch.Tensor
    q_rope_THR: torch.Tensor
    latent_TC: torch.Tensor
    rope_key_TR: torch.Tensor
    w_uk_HNC: torch.Tensor | Packed
    w_uv_HVC: torch.Tensor | Packed


class AttentionContext(Protocol):
    """One step's attention: each query over its sequence up to itself, o_THV."""

    positions_T: torch.Tensor

    def gqa(self, x: GqaInputs) -> torch.Tensor: ...

    def mla(self, x: MlaInputs) -> torch.Tensor: ...


class CausalContext:
    """`batch` sequences of `length` tokens each, laid one after another."""

    def __init__(self, batch: int, length: int, device: torch.device | str = "cpu") -> None:
        self.batch, self.length = batch, length
        self.positions_T = torch.arange(length, device=device).repeat(batch)

    def gqa(self, x: GqaInputs) -> torch.Tensor:
        q_THP, k_TGP = x.normed_and_rotated()
        q, k, v = (self._by_sequence(t) for t in (q_THP, k_TGP, x.v_TGV))
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        return self._attend(q, k, v, x.mixer.scale, x.window, x.sinks_H).transpose(1, 2).flatten(0, 1)

    def mla(self, x: MlaInputs) -> torch.Tensor:
        # packed, it holds [C, N] of each head, the matrix that moves a query into the latent space
        w_uk_HNC = x.w_uk_HNC.dense().transpose(1, 2) if isinstance(x.w_uk_HNC, Packed) else x.w_uk_HNC
        w_uv_HVC = x.w_uv_HVC.dense() if isinstance(x.w_uv_HVC, Packed) else x.w_uv_HVC
        k_nope_THN = torch.einsum("tc,hnc->thn", x.latent_TC, w_uk_HNC.to(x.latent_TC.dtype))
        v_THV = torch.einsum("tc,hvc->thv", x.latent_TC, w_uv_HVC.to(x.latent_TC.dtype))
        k_THP = torch.cat((k_nope_THN, x.rope_key_TR[:, None].expand(-1, x.mixer.num_heads, -1)), dim=-1)
        q_THP = torch.cat((x.q_nope_THN, x.q_rope_THR), dim=-1)
        q, k, v = (self._by_sequence(t) for t in (q_THP, k_THP, v_THV))
        return self._attend(q, k, v, x.mixer.scale, x.window, None).transpose(1, 2).flatten(0, 1)

    def _by_sequence(self, x_THP: torch.Tensor) -> torch.Tensor:
        """[T, H, P] as [B, H, S, P]."""
        return x_THP.unflatten(0, (self.batch, self.length)).transpose(1, 2)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: int | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        """[B, H, S, P] against [B, H, S, P]; the fused op where nothing stands in its way."""
        whole = window is None or window >= self.length
        if whole and sinks_H is None and q.shape[-1] == v.shape[-1]:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        i = torch.arange(self.length, device=q.device)
        hidden = i[None, :] > i[:, None]
        if window is not None:
            hidden = hidden | (i[None, :] <= i[:, None] - window)
        logits = (q @ k.transpose(-1, -2)).float() * scale
        logits = logits.masked_fill(hidden, float("-inf"))
        if sinks_H is None:
            return logits.softmax(-1).to(v.dtype) @ v
        sink = sinks_H.float()[None, :, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat((logits, sink), dim=-1).softmax(-1)[..., :-1].to(v.dtype) @ v
