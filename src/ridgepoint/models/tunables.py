"""What a decoder makes the tuner choose for: its experts, packed linears and attention layers, at the sizes it will serve.

Layers that are alike make one problem, tried on up to `ROTATED` of them, whose own weights and blocks are the operands: tuning
needs next to no memory, and tries what will run. Decides which problems and in which order, not how any is tried. Imports
Triton; who imports this has made sure that there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.linear.tunable import linear_problem
from ridgepoint.kernels.mla_attention import tunable as mla
from ridgepoint.kernels.moe_experts.tunable import ExpertLayer, expert_problem
from ridgepoint.kernels.paged_attention import tunable as paged
from ridgepoint.kernels.tuning.tuner import Problem, buckets
from ridgepoint.models.decoder import Block, Decoder
from ridgepoint.models.paged import KVCache
from ridgepoint.nn.attention import GqaAttention, MlaAttention
from ridgepoint.nn.ffn import MoeFfn

ROTATED = 4  # layers whose operands together are larger than the cache
DECODES = (1, 4, 16, 64, 256)  # sequences
PROMPTS = (1024, 2048)  # tokens, beside the largest step
LONGEST = 4096  # tokens of context that decoding is tuned at
LONGEST_PROMPT = 8192
L = TypeVar("L")


def problems_of(decoder: Decoder, cache: KVCache, *, max_seqs: int, max_tokens: int, max_context: int) -> list[Problem]:
    """Every problem, those of steps that decode before those of prompts. Sizes beyond a prompt's last bucket are its own; where
    no step is larger than a decoding one, a larger size keeps the shipped choice."""
    decodes = buckets(DECODES, max_seqs)
    prompts = [(size, up_to) for size, up_to in buckets(PROMPTS, max_tokens) if size > max_seqs]
    experts = _alike(_expert_layers(decoder))
    linears = _alike(_packed_linears(decoder))
    caches, latents = _alike(_paged_layers(decoder, cache)), _alike(_latent_layers(decoder, cache))
    decoding: list[Problem] = []
    for size, up_to in decodes:
        room = (cache.num_blocks - 1) // size * cache.block_tokens
        context = max(1, min(LONGEST, max_context, room))
        decoding += [expert_problem(layers, size, float(size)) for layers in experts]
        decoding += [paged.decode_problem(layers, size, context, up_to) for layers in caches]
        decoding += [mla.decode_problem(layers, size, context, up_to) for layers in latents]
        decoding += [linear_problem(weights, size, float(size)) for weights in linears]
    prompting: list[Problem] = []
    for size, up_to in prompts:
        prompting += [expert_problem(layers, size, up_to) for layers in experts]
        prompting += [linear_problem(weights, size, up_to) for weights in linears]
    prompt, end = min(max_tokens, max_context, LONGEST_PROMPT), float(1 << 30)
    prompting += [paged.prompt_problem(layers, prompt, end) for layers in caches]
    prompting += [mla.prompt_problem(layers, prompt, end) for layers in latents]
    return decoding + prompting


def _alike(pairs: Iterable[tuple[Hashable, L]]) -> list[list[L]]:
    """The first few of each kind."""
    kinds: dict[Hashable, list[L]] = defaultdict(list)
    for kind, layer in pairs:
        if len(kinds[kind]) < ROTATED:
            kinds[kind].append(layer)
    return list(kinds.values())


def _blocks(decoder: Decoder) -> Iterator[tuple[int, Block]]:
    for index, block in enumerate(decoder.layers):
        assert isinstance(block, Block)
        yield index, block


def _expert_layers(decoder: Decoder) -> Iterator[tuple[Hashable, ExpertLayer]]:
    for index, block in _blocks(decoder):
        if isinstance(block.ffn, MoeFfn):
            spec, experts = decoder.spec.layers[index].ffn, block.ffn.experts
            layer = ExpertLayer(
                gate_up=experts.w_gate_up_E2FD, down=experts.w_down_EDF, activation=spec.activation,  # type: ignore[union-attr]
                top_k=block.ffn.router.top_k, bias_gate_up=experts.bias_gate_up_E2F, bias_down=experts.bias_down_ED,
            )  # fmt: skip
            yield (layer.kind, tuple(layer.gate_up.shape), layer.top_k), layer


def _packed_linears(decoder: Decoder) -> Iterator[tuple[Hashable, DeviceWeight]]:
    for module in decoder.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, DeviceWeight):
            yield (weight.product, weight.inputs, weight.outputs), weight
    if isinstance(decoder.packed_head, DeviceWeight):
        yield "head", decoder.packed_head


def _paged_layers(decoder: Decoder, cache: KVCache) -> Iterator[tuple[Hashable, paged.PagedLayer]]:
    for index, block in _blocks(decoder):
        if isinstance(block.mixer, GqaAttention):
            spec = block.mixer.spec
            layer = paged.PagedLayer(
                kv=cache.layers[index], block_tokens=cache.block_tokens, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim, scale=spec.scale, window=decoder.spec.layers[index].window, sinks_H=block.mixer.sinks_H,
            )  # fmt: skip
            yield layer.shape, layer


def _latent_layers(decoder: Decoder, cache: KVCache) -> Iterator[tuple[Hashable, mla.LatentLayer]]:
    for index, block in _blocks(decoder):
        if isinstance(block.mixer, MlaAttention):
            mixer = block.mixer
            layer = mla.LatentLayer(
                kv=cache.layers[index], block_tokens=cache.block_tokens, w_uk_HNC=mixer.w_uk_HNC, w_uv_HVC=mixer.w_uv_HVC,
                rope_dim=mixer.spec.rope_dim, scale=mixer.spec.scale, window=decoder.spec.layers[index].window,
            )  # fmt: skip
            yield layer.shape, layer
