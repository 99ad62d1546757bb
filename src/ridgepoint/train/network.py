"""The trained model: parameters under their Hugging Face names, and the forward pass that training runs.

Decides initial values and the training-time arrangement of a GLM-4.5-MoE decoder (GQA with per-head qk-norm and partial
rotary, first layers dense, then routed experts with sigmoid scores and a correction bias, plus shared experts). It is
the fast twin of `models.decoder.Decoder`; a test holds both, and `transformers`, to the same logits. It knows nothing
of optimisers. Invariant: parameters are a flat dict of tensors, so saving, exporting and optimising are loops over it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ridgepoint.train.pointwise import Pointwise
from ridgepoint.train.products import CausalAttention, RoutedExperts, VocabularyLoss
from ridgepoint.train.recipe import ModelTable

Parameters = dict[str, Tensor]
HEAD, EMBED, FINAL_NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


def is_moe_layer(model: ModelTable, layer: int) -> bool:
    return layer >= model.num_dense_layers


def bias_name(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def initial_parameters(model: ModelTable, vocab_size: int, seed: int) -> Parameters:
    """Float32 masters. Matrices draw from N(0, 1/fan_in); the two that write to the residual stream are divided by
    sqrt(2 L) more, so the stream's variance does not grow with depth. Experts are stacked: [E, 2F, D] and [E, D, F]."""
    draw = torch.Generator().manual_seed(seed)
    depth = 1 / math.sqrt(2 * model.num_layers)

    def matrix(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=draw) * (scale / math.sqrt(shape[-1]))

    width = model.d_model
    params: Parameters = {EMBED: matrix(vocab_size, width)}
    for layer in range(model.num_layers):
        at = f"model.layers.{layer}."
        params[at + "input_layernorm.weight"] = torch.ones(width)
        params[at + "self_attn.qkv_proj.weight"] = matrix(
            (model.num_heads + 2 * model.num_kv_heads) * model.head_dim, width
        )
        params[at + "self_attn.q_norm.weight"] = torch.ones(model.head_dim)
        params[at + "self_attn.k_norm.weight"] = torch.ones(model.head_dim)
        params[at + "self_attn.o_proj.weight"] = matrix(width, model.num_heads * model.head_dim, scale=depth)
        params[at + "post_attention_layernorm.weight"] = torch.ones(width)
        if is_moe_layer(model, layer):
            shared = model.expert_width * model.num_shared_experts
            params[at + "mlp.gate.weight"] = matrix(model.num_experts, width)
            params[at + "mlp.experts.gate_up_proj"] = matrix(model.num_experts, 2 * model.expert_width, width)
            params[at + "mlp.experts.down_proj"] = matrix(model.num_experts, width, model.expert_width, scale=depth)
            params[at + "mlp.shared_experts.gate_up_proj.weight"] = matrix(2 * shared, width)
            params[at + "mlp.shared_experts.down_proj.weight"] = matrix(width, shared, scale=depth)
        else:
            params[at + "mlp.gate_up_proj.weight"] = matrix(2 * model.dense_width, width)
            params[at + "mlp.down_proj.weight"] = matrix(width, model.dense_width, scale=depth)
    params[FINAL_NORM] = torch.ones(width)
    if not model.tied_embeddings:
        params[HEAD] = matrix(vocab_size, width, scale=0.5)
    return params


def initial_biases(model: ModelTable) -> Parameters:
    """The routers' correction biases: moved by the load, never by a gradient."""
    layers = [layer for layer in range(model.num_layers) if is_moe_layer(model, layer)]
    return {bias_name(layer): torch.zeros(model.num_experts) for layer in layers}


def stays_float32(name: str) -> bool:
    """Norm scales and routers compute in float32; everything else in the run's compute type."""
    return "norm" in name or name.endswith("mlp.gate.weight")


def rotary_tables(model: ModelTable, length: int) -> tuple[Tensor, Tensor]:
    width = int(model.head_dim * model.rotary_frac)
    inverse = 1.0 / model.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


class Network:
    """The forward pass over a parameter dict. Holds no parameters: workers share one network over one dict."""

    def __init__(self, model: ModelTable, ops: Pointwise) -> None:
        self.model = model
        self.ops = ops
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        if length not in self._tables:
            self._tables[length] = rotary_tables(self.model, length)
        return self._tables[length]

    def hidden(self, ids_BS: Tensor, params: Parameters, biases: Parameters, loads: dict[int, Tensor]) -> Tensor:
        """Hidden states after the final norm, [B*S, D]. Each MoE layer's tokens-per-expert are added to `loads`."""
        model, ops, eps = self.model, self.ops, self.model.norm_eps
        batch, length = ids_BS.shape
        x_TD = torch.nn.functional.embedding(ids_BS.reshape(-1), params[EMBED])
        normed_TD = ops.rms_norm(x_TD, params["model.layers.0.input_layernorm.weight"], eps)
        for layer in range(model.num_layers):
            at = f"model.layers.{layer}."
            mixed_TD = self._attention(normed_TD, batch, length, params, at)
            x_TD, normed_TD = ops.add_rms_norm(x_TD, mixed_TD, params[at + "post_attention_layernorm.weight"], eps)
            if is_moe_layer(model, layer):
                mixed_TD = self._experts(normed_TD, params, biases, layer, loads)
            else:
                mixed_TD = self._dense(normed_TD, params, at + "mlp.")
            last = layer + 1 == model.num_layers
            following = FINAL_NORM if last else f"model.layers.{layer + 1}.input_layernorm.weight"
            x_TD, normed_TD = ops.add_rms_norm(x_TD, mixed_TD, params[following], eps)
        return normed_TD

    def head(self, params: Parameters) -> Tensor:
        return params[EMBED if self.model.tied_embeddings else HEAD]

    def loss_sum(
        self, ids_BS: Tensor, targets_BS: Tensor, params: Parameters, biases: Parameters, loads: dict[int, Tensor]
    ) -> Tensor:
        """Summed negative log likelihood in nats."""
        x_TD = self.hidden(ids_BS, params, biases, loads)
        loss: Tensor = VocabularyLoss.apply(x_TD, self.head(params), targets_BS.reshape(-1), self.ops)
        return loss

    def _attention(self, x_TD: Tensor, batch: int, length: int, params: Parameters, at: str) -> Tensor:
        model = self.model
        qkv = (x_TD @ params[at + "self_attn.qkv_proj.weight"].t()).view(batch, length, -1)
        q, k, v = self.ops.queries_keys_values(
            qkv,
            params[at + "self_attn.q_norm.weight"],
            params[at + "self_attn.k_norm.weight"],
            *self.rotary(length),
            model.num_kv_heads,
            model.norm_eps,
        )
        mixed: Any = CausalAttention.apply(q, k, v, model.head_dim**-0.5, self.ops)
        mixed = mixed.view(batch, model.num_kv_heads, length, -1).transpose(1, 2).reshape(batch * length, -1)
        return mixed @ params[at + "self_attn.o_proj.weight"].t()

    def _dense(self, x_TD: Tensor, params: Parameters, at: str) -> Tensor:
        return self.ops.swiglu(x_TD @ params[at + "gate_up_proj.weight"].t()) @ params[at + "down_proj.weight"].t()

    def route(self, x_TD: Tensor, params: Parameters, biases: Parameters, layer: int) -> tuple[Tensor, Tensor]:
        """Sigmoid scores; the correction bias takes part in the choice only; weights are normalised and scaled."""
        logits_TE = x_TD.float() @ params[f"model.layers.{layer}.mlp.gate.weight"].t()
        scores_TE = logits_TE.sigmoid()
        ids_TK = (scores_TE.detach() + biases[bias_name(layer)]).topk(self.model.top_k, dim=-1, sorted=False).indices
        weights_TK = scores_TE.gather(1, ids_TK)
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20) * self.model.routed_scale
        return weights_TK, ids_TK

    def _experts(
        self, x_TD: Tensor, params: Parameters, biases: Parameters, layer: int, loads: dict[int, Tensor]
    ) -> Tensor:
        at = f"model.layers.{layer}.mlp."
        weights_TK, ids_TK = self.route(x_TD, params, biases, layer)
        count_E = torch.bincount(ids_TK.reshape(-1), minlength=self.model.num_experts)
        loads[layer] = loads[layer] + count_E if layer in loads else count_E
        routed: Tensor = RoutedExperts.apply(
            x_TD, weights_TK, ids_TK, params[at + "experts.gate_up_proj"], params[at + "experts.down_proj"], self.ops
        )
        return routed + self._dense(x_TD, params, at + "shared_experts.")
