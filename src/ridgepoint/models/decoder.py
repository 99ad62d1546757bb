"""The decoder: one definition for every family, for training and for serving.

It knows the order of layers and nothing of sequences, caches or checkpoints. Facts of a spec that it cannot execute
are refused by name when it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ridgepoint.catalog.spec import (
    ClampedSwiGlu,
    DenseSpec,
    GqaSpec,
    LayerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    PlainResidual,
    RopeSpec,
    SwiGlu,
)  # fmt: skip
from ridgepoint.errors import CheckpointError
from ridgepoint.kernels.linear import linear_f32, linear_f32_into
from ridgepoint.kernels.moe_experts.unsummed import Delta
from ridgepoint.kernels.scale import scale
from ridgepoint.nn.attention import GqaAttention, MlaAttention
from ridgepoint.nn.context import AttentionContext, Tables
from ridgepoint.nn.ffn import DenseFfn, MoeFfn
from ridgepoint.nn.linear import Embedding, Linear
from ridgepoint.nn.norm import Norm
from ridgepoint.nn.rope import Rotary

Wanted = Callable[[torch.Tensor], torch.Tensor]  # rows [R, ...] of [T, ...]: those that somebody asks for
ENDS_BRANCH = (".o.weight", ".down.weight", ".w_down_EDF")  # parameters whose products join the residual stream


class Decoder(nn.Module):
    """`dtype` is what weights are kept in (routers: float32), `compute_dtype` what activations are (default: `dtype`).

    Training keeps float32 weights and may compute in bfloat16: every op casts a wider weight to its input's type.
    Parameters are uninitialised: load a checkpoint or call `initialise`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(spec)
        self.spec, self.dtype, self.compute_dtype = spec, dtype, compute_dtype or dtype
        self.embed = Embedding(
            spec.vocab_size,
            spec.d_model,
            scale=spec.embedding_scale,
            dtype=dtype,
            out_dtype=self.compute_dtype,
            device=device,
        )
        ropes = list(dict.fromkeys(rope for layer in spec.layers if (rope := _rope(layer)) is not None))
        self.rotaries = nn.ModuleList(Rotary(rope, spec.max_context, device=device) for rope in ropes)
        self.layers = nn.ModuleList(
            Block(spec, layer, index, ropes, dtype=dtype, device=device) for index, layer in enumerate(spec.layers)
        )
        self.norm = Norm(spec.norm, spec.d_model, dtype=dtype, device=device)
        self.head = (
            None
            if spec.tied_embeddings
            else Linear(spec.d_model, spec.vocab_size, bias=spec.head_bias, dtype=dtype, device=device, f32=True)
        )
        self.packed_head: Any = None  # a tied head's weight, once packed

    def hidden(self, ids_T: torch.Tensor, ctx: AttentionContext, wanted: Wanted | None = None) -> torch.Tensor:
        """Final hidden states x_TD, after the last norm. With `wanted` only those it selects, x_RD: other tokens meet a token's
        keys and values, so once the last layer's attention is done rows that nobody wants have done their part."""
        tables = [rotary(ctx.positions_T) for rotary in self.rotaries]
        x_TD = self.embed(ids_T)
        delta_TD: Delta | None = None
        *earlier, last = self.layers
        for block in earlier:
            x_TD, delta_TD = block(x_TD, delta_TD, tables, ctx)
        assert isinstance(last, Block)
        x_TD, o_TI = last.attend(x_TD, delta_TD, tables, ctx)
        if wanted is not None:
            x_TD, o_TI = wanted(x_TD), wanted(o_TI)
            if len(x_TD) == 0:
                return x_TD  # no kernel is launched on nothing
        return self.norm.add(*last.feed(x_TD, o_TI), self.spec.residual_scale)[1]

    def logits(self, x_RD: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Float32 logits of hidden rows, in `out` where that is given."""
        if self.head is not None:
            weight, bias = self.head.weight, self.head.bias
        else:
            weight, bias = self.embed.weight if self.packed_head is None else self.packed_head, None
        logits_RV = linear_f32(x_RD, weight, bias) if out is None else linear_f32_into(out, x_RD, weight, bias)
        if self.spec.logit_scale == 1.0:
            return logits_RV
        return scale(logits_RV, self.spec.logit_scale) if out is None else out.mul_(self.spec.logit_scale)

    def forward(self, ids_T: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        return self.logits(self.hidden(ids_T, ctx))

    def reset_rotary(self, device: torch.device | str) -> None:
        """Compute rotary frequencies on `device` (a model built on `meta` has none)."""
        for rotary in self.rotaries:
            assert isinstance(rotary, Rotary)
            rotary.reset(device)

    def moe_layers(self) -> list[tuple[int, MoeFfn]]:
        """(layer index, layer) of every mixture, for those who read loads or set correction biases."""
        return [(i, block.ffn) for i, block in enumerate(self.layers) if isinstance(block.ffn, MoeFfn)]

    @torch.no_grad()
    def initialise(self, seed: int, std: float = 0.02) -> None:
        """Normal matrices (those that end a branch divided by sqrt(2 L)), unit norms, zero biases, sinks, corrections."""
        generator = torch.Generator(device=self.embed.weight.device).manual_seed(seed)
        depth = max(1, 2 * len(self.layers)) ** -0.5
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if "norm" in name and leaf == "weight":
                parameter.fill_(1.0)
            elif leaf.startswith(("bias", "sinks")):
                parameter.zero_()
            else:
                parameter.normal_(0.0, std * (depth if name.endswith(ENDS_BRANCH) else 1.0), generator=generator)
        for _, moe in self.moe_layers():
            if moe.router.correction_E is not None:
                moe.router.correction_E.zero_()
            moe.router.load_E.zero_()


class Block(nn.Module):
    """Norm, mixer, norm, feed-forward. It takes and returns the residual stream and the branch not yet added to it,
    so that the addition happens inside the next norm."""

    def __init__(
        self,
        spec: ModelSpec,
        layer: LayerSpec,
        index: int,
        ropes: list[RopeSpec],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        d, eps, mixer, ffn = spec.d_model, spec.norm.eps, layer.mixer, layer.ffn
        self._index, self._window, self._scale = index, layer.window, spec.residual_scale
        rope = _rope(layer)
        self._rope_index = None if rope is None else ropes.index(rope)
        self.mixer_norm = Norm(spec.norm, d, dtype=dtype, device=device)
        self.mixer: GqaAttention | MlaAttention
        if isinstance(mixer, GqaSpec):
            self.mixer = GqaAttention(mixer, d, eps, dtype=dtype, device=device)
        else:
            assert isinstance(mixer, MlaSpec)
            self.mixer = MlaAttention(mixer, d, eps, dtype=dtype, device=device)
        self.ffn_norm = Norm(spec.norm, d, dtype=dtype, device=device)
        self.ffn: DenseFfn | MoeFfn
        if isinstance(ffn, DenseSpec):
            self.ffn = DenseFfn(ffn, d, dtype=dtype, device=device)
        else:
            assert ffn is not None
            self.ffn = MoeFfn(ffn, d, dtype=dtype, device=device)

    def forward(
        self, x_TD: torch.Tensor, delta_TD: Delta | None, tables: list[Tables], ctx: AttentionContext
    ) -> tuple[torch.Tensor, Delta]:
        return self.feed(*self.attend(x_TD, delta_TD, tables, ctx))

    def attend(
        self, x_TD: torch.Tensor, delta_TD: Delta | None, tables: list[Tables], ctx: AttentionContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream as the mixer met it, and what its heads found, side by side. Rows meet here and nowhere else."""
        if delta_TD is None:
            n_TD = self.mixer_norm(x_TD)
        else:
            x_TD, n_TD = self.mixer_norm.add(x_TD, delta_TD, self._scale)
        rope = None if self._rope_index is None else tables[self._rope_index]
        return x_TD, self.mixer(n_TD, self._index, self._window, rope, ctx).flatten(1)

    def feed(self, x_TD: torch.Tensor, o_TI: torch.Tensor) -> tuple[torch.Tensor, Delta]:
        """What follows attention, each row by itself."""
        x_TD, n_TD = self.ffn_norm.add(x_TD, self.mixer.o(o_TI), self._scale)
        return x_TD, self.ffn(n_TD)


def refuse_unsupported(spec: ModelSpec) -> None:
    """Raise `CheckpointError` naming the first fact of `spec` that the decoder cannot execute."""
    for index, layer in enumerate(spec.layers):
        fact = _unsupported_mixer(layer) or _unsupported_ffn(layer)
        if layer.post_norms:
            fact = fact or "norms after the mixer and the feed-forward"
        if fact:
            raise CheckpointError(f"layer {index}: {fact} cannot be executed")
    if not isinstance(spec.residual, PlainResidual):
        raise CheckpointError(f"residual {spec.residual!r} cannot be executed; allowed: one plain stream")
    if spec.tied_embeddings and spec.head_bias:
        raise CheckpointError("a tied head with a bias of its own cannot be executed")


def _unsupported_mixer(layer: LayerSpec) -> str | None:
    mixer = layer.mixer
    if not isinstance(mixer, GqaSpec | MlaSpec):
        return f"mixer {mixer!r} (allowed: GQA, MLA)"
    if mixer.output_gate != "none":
        return f"a {mixer.output_gate} output gate"
    if isinstance(mixer, GqaSpec) and mixer.v_head_dim != mixer.head_dim:
        return f"values of width {mixer.v_head_dim} beside keys of {mixer.head_dim}"
    if isinstance(mixer, GqaSpec) and mixer.v_from_k:
        return "values made from the key projection"
    if isinstance(mixer, MlaSpec) and mixer.rope is None:
        return "latent attention without rotation"
    if layer.indexer is not None:
        return "the sparse-attention indexer"
    if layer.kv_from_layer is not None:
        return f"KV shared from layer {layer.kv_from_layer}"
    return None


def _unsupported_ffn(layer: LayerSpec) -> str | None:
    ffn = layer.ffn
    if ffn is None:
        return "a layer without feed-forward"
    if not isinstance(ffn.activation, SwiGlu | ClampedSwiGlu):
        return f"activation {ffn.activation!r}"
    if isinstance(ffn, MoeSpec):
        if ffn.latent_dim is not None:
            return f"experts in a latent width of {ffn.latent_dim}"
        if ffn.router.scores.startswith("sqrt_softplus"):
            return f"router scores {ffn.router.scores!r}"
    return None


def _rope(layer: LayerSpec) -> RopeSpec | None:
    return layer.mixer.rope if isinstance(layer.mixer, GqaSpec | MlaSpec) else None
