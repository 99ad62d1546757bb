"""Attention's view of the past. Layers hand over this step's queries, keys and values; the context knows the rest.

`CausalContext` is the plain one: whole sequences of one length, nothing cached, differentiable. Training runs on it and
it is the slow twin of the paged context. Tensors are flat in tokens; only a context knows how they form sequences.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from ridgepoint.catalog.spec import GqaSpec, MlaSpec
from ridgepoint.kernels.packed import Packed


class AttentionContext(Protocol):
    """One step's attention. `window` is the number of keys a query sees, itself included (None: all)."""

    positions_T: torch.Tensor

    def rotate_and_store(
        self,
        layer: int,
        q_THP: torch.Tensor,
        k_TGP: torch.Tensor,
        v_TGV: torch.Tensor,
        norms: tuple[torch.Tensor | None, torch.Tensor | None],
        eps: float,
        tables: tuple[torch.Tensor, torch.Tensor],
        interleaved: bool,
    ) -> torch.Tensor | None:
        """Queries behind norm and rotation, with keys and values stored on the way; None where these are steps of their own."""
        ...

    def gqa(
        self,
        layer: int,
        q_THP: torch.Tensor,
        k_TGP: torch.Tensor | None,
        v_TGV: torch.Tensor | None,
        mixer: GqaSpec,
        window: int | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of each query over its sequence up to itself: o_THV. Without keys and values they are stored already."""
        ...

    def mla(
        self,
        layer: int,
        q_nope_THN: torch.Tensor,
        q_rope_THR: torch.Tensor,
        latent_TC: torch.Tensor,
        rope_key_TR: torch.Tensor,
        w_uk_HNC: torch.Tensor,
        w_uv_HVC: torch.Tensor,
        mixer: MlaSpec,
        window: int | None,
    ) -> torch.Tensor:
        """Latent attention: keys are `w_uk @ latent` beside one shared rotary key, values `w_uv @ latent`: o_THV."""
        ...


class CausalContext:
    """`batch` sequences of `length` tokens each, laid one after another."""

    def __init__(self, batch: int, length: int, device: torch.device | str = "cpu") -> None:
        self.batch, self.length = batch, length
        self.positions_T = torch.arange(length, device=device).repeat(batch)

    def rotate_and_store(self, *_: object) -> None:
        """Nothing is stored."""

    def gqa(
        self,
        layer: int,
        q_THP: torch.Tensor,
        k_TGP: torch.Tensor | None,
        v_TGV: torch.Tensor | None,
        mixer: GqaSpec,
        window: int | None,
        sinks_H: torch.Tensor | None,
    ) -> torch.Tensor:
        assert k_TGP is not None and v_TGV is not None
        q, k, v = (x.unflatten(0, (self.batch, self.length)).transpose(1, 2) for x in (q_THP, k_TGP, v_TGV))
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        o = self._attend(q, k, v, mixer.scale, window, sinks_H)
        return o.transpose(1, 2).flatten(0, 1)

    def mla(
        self,
        layer: int,
        q_nope_THN: torch.Tensor,
        q_rope_THR: torch.Tensor,
        latent_TC: torch.Tensor,
        rope_key_TR: torch.Tensor,
        w_uk_HNC: torch.Tensor | Packed,
        w_uv_HVC: torch.Tensor | Packed,
        mixer: MlaSpec,
        window: int | None,
    ) -> torch.Tensor:
        if isinstance(
            w_uk_HNC, Packed
        ):  # it holds [C, N] of each head, the matrix that moves a query into the latent space
            w_uk_HNC = w_uk_HNC.dense().transpose(1, 2)
        if isinstance(w_uv_HVC, Packed):
            w_uv_HVC = w_uv_HVC.dense()
        k_nope_THN = torch.einsum("tc,hnc->thn", latent_TC, w_uk_HNC.to(latent_TC.dtype))
        v_THV = torch.einsum("tc,hvc->thv", latent_TC, w_uv_HVC.to(latent_TC.dtype))
        k_THP = torch.cat((k_nope_THN, rope_key_TR[:, None].expand(-1, mixer.num_heads, -1)), dim=-1)
        q_THP = torch.cat((q_nope_THN, q_rope_THR), dim=-1)
        q, k, v = (x.unflatten(0, (self.batch, self.length)).transpose(1, 2) for x in (q_THP, k_THP, v_THV))
        return self._attend(q, k, v, mixer.scale, window, None).transpose(1, 2).flatten(0, 1)

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
