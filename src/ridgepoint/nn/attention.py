"""Token mixers: grouped-query attention and multi-head latent attention. What is cached is the context's business.

A mixer stops at what its heads found, o_THV. Its output projection `o` is applied by the block, which may want fewer rows of it.
"""

from __future__ import annotations

import torch
from torch import nn

from ridgepoint.catalog.spec import GqaSpec, MlaSpec, NormSpec
from ridgepoint.kernels.clip import clip
from ridgepoint.kernels.rope import rope
from ridgepoint.nn.context import AttentionContext, GqaInputs, MlaInputs, Tables
from ridgepoint.nn.linear import Linear, parameter
from ridgepoint.nn.norm import Norm


class GqaAttention(nn.Module):
    """Query rows, then key rows, then value rows in one fused projection."""

    def __init__(
        self, spec: GqaSpec, d_model: int, eps: float, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.spec = spec
        q, k, v = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim, spec.num_kv_heads * spec.v_head_dim
        self._split = (q, k, v)
        self.qkv = Linear(d_model, q + k + v, bias=spec.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(spec.num_heads * spec.v_head_dim, d_model, bias=spec.o_bias, dtype=dtype, device=device)
        self._eps = eps
        rms = NormSpec(kind="rms", eps=eps)
        widths = {"none": None, "per_head": (spec.head_dim, spec.head_dim), "full": (q, k)}[spec.qk_norm]
        self.q_norm = Norm(rms, widths[0], dtype=dtype, device=device) if widths else None
        self.k_norm = Norm(rms, widths[1], dtype=dtype, device=device) if widths else None
        self.sinks_H = nn.Parameter(torch.empty(spec.num_heads, dtype=dtype, device=device)) if spec.sinks else None

    def forward(
        self, x_TD: torch.Tensor, layer: int, window: int | None, tables: Tables | None, ctx: AttentionContext
    ) -> torch.Tensor:
        spec = self.spec
        qkv = self.qkv(x_TD)
        q, k, v = qkv.split(self._split, dim=-1)
        if self.q_norm is not None and self.k_norm is not None and spec.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        if spec.qkv_clip is not None:
            q, k, v = clip(q, spec.qkv_clip), clip(k, spec.qkv_clip), clip(v, spec.qkv_clip)
        norms = None
        if self.q_norm is not None and self.k_norm is not None and spec.qk_norm == "per_head":
            norms = self.q_norm.weight, self.k_norm.weight
        return ctx.gqa(
            GqaInputs(
                layer=layer,
                mixer=spec,
                window=window,
                q_THP=q.unflatten(-1, (spec.num_heads, -1)),
                k_TGP=k.unflatten(-1, (spec.num_kv_heads, -1)),
                v_TGV=v.unflatten(-1, (spec.num_kv_heads, -1)),
                norms=norms,
                eps=self._eps,
                tables=tables,
                sinks_H=self.sinks_H,
            )
        )


class MlaAttention(nn.Module):
    """Latent attention. `w_uk_HNC` and `w_uv_HVC` lift the latent to per-head keys and values."""

    def __init__(
        self, spec: MlaSpec, d_model: int, eps: float, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.spec = spec
        rms = NormSpec(kind="rms", eps=eps)
        q_out = spec.num_heads * (spec.nope_dim + spec.rope_dim)
        bias = spec.bias
        self.q_a = Linear(d_model, spec.q_rank, bias=bias, dtype=dtype, device=device) if spec.q_rank else None
        self.q_a_norm = Norm(rms, spec.q_rank, dtype=dtype, device=device) if spec.q_rank else None
        self.q_b = Linear(spec.q_rank or d_model, q_out, bias=False, dtype=dtype, device=device)
        self.kv_a = Linear(d_model, spec.kv_rank + spec.rope_dim, bias=bias, dtype=dtype, device=device)
        self.kv_a_norm = Norm(rms, spec.kv_rank, dtype=dtype, device=device)
        self.w_uk_HNC = parameter(spec.num_heads, spec.nope_dim, spec.kv_rank, dtype=dtype, device=device)
        self.w_uv_HVC = parameter(spec.num_heads, spec.v_dim, spec.kv_rank, dtype=dtype, device=device)
        self.o = Linear(spec.num_heads * spec.v_dim, d_model, bias=bias, dtype=dtype, device=device)

    def forward(
        self, x_TD: torch.Tensor, layer: int, window: int | None, tables: Tables | None, ctx: AttentionContext
    ) -> torch.Tensor:
        spec = self.spec
        assert tables is not None and spec.rope is not None
        low = x_TD if self.q_a is None or self.q_a_norm is None else self.q_a_norm(self.q_a(x_TD))
        q_THP = self.q_b(low).unflatten(-1, (spec.num_heads, -1))
        q_nope_THN, q_rope_THR = q_THP.split((spec.nope_dim, spec.rope_dim), dim=-1)
        latent_TC, rope_key_TR = self.kv_a(x_TD).split((spec.kv_rank, spec.rope_dim), dim=-1)
        return ctx.mla(
            MlaInputs(
                layer=layer,
                mixer=spec,
                window=window,
                q_nope_THN=q_nope_THN,
                q_rope_THR=rope(q_rope_THR, *tables, spec.rope.interleaved),
                latent_TC=self.kv_a_norm(latent_TC),
                rope_key_TR=rope(rope_key_TR[:, None], *tables, spec.rope.interleaved)[:, 0],
                w_uk_HNC=self.w_uk_HNC,
                w_uv_HVC=self.w_uv_HVC,
            )
        )
