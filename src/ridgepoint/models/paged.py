"""The serving side of attention: the cache of key-value blocks, one step's inputs, and the context layers call.

Which block belongs to whom is decided elsewhere; here block numbers are facts. A block is one contiguous row of bytes
per layer, laid out by the attention kernel; `export_block` and `import_block` carry it as bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgepoint.catalog.spec import GqaSpec, MlaSpec, ModelSpec
from ridgepoint.kernels import mla_attention, paged_attention
from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.nn.context import GqaInputs, MlaInputs


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """T tokens of B sequences, those of one sequence together and in order.

    `slots_T` is where each token's key and value go. `context_lens_B` counts a sequence's tokens once this step is
    done. `logit_rows_R` are the rows whose logits are wanted. `prompt_lens_B` counts the tokens a request came with, which some
    paths compute in another form than those generated after them (None: nobody says, and nothing is). `known` is what the host knows
    of the sequences, of a step that is not replayed with others.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    query_starts_B1: torch.Tensor
    context_lens_B: torch.Tensor
    block_tables_BN: torch.Tensor
    logit_rows_R: torch.Tensor
    prompt_lens_B: torch.Tensor | None = None
    known: Known | None = None


class KVCache:
    """`num_blocks` blocks of `block_tokens` tokens for every layer, their numbers kept in `dtype` (int8 and float8_e4m3fn:
    as codes with scales)."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.num_blocks, self.block_tokens = spec, num_blocks, block_tokens
        self.layers: list[torch.Tensor] = []
        for layer in spec.layers:
            mixer = layer.mixer
            if isinstance(mixer, GqaSpec):
                heads, width = mixer.num_kv_heads, mixer.head_dim
                kv = paged_attention.allocate(num_blocks, block_tokens, heads, width, dtype, device)
            else:
                assert isinstance(mixer, MlaSpec)
                kv = mla_attention.allocate(num_blocks, block_tokens, mixer.kv_rank, mixer.rope_dim, dtype, device)
            self.layers.append(kv)
        self._bytes = [kv.view(torch.uint8).flatten(1) for kv in self.layers]  # [block, its bytes]
        self.must_clear = not all(
            paged_attention.masks_unwritten(kv)
            if isinstance(layer.mixer, GqaSpec)
            else mla_attention.masks_unwritten(kv)
            for layer, kv in zip(spec.layers, self.layers, strict=True)
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return sum(layer.shape[1] for layer in self._bytes)

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero whole blocks. A new owner must not inherit numbers: slots it has not filled are masked, but a NaN left
        there by the last owner would pass the mask."""
        for layer in self._bytes:
            layer.index_fill_(0, blocks, 0)

    def export_block(self, block: int) -> torch.Tensor:
        """The block's bytes, all layers in order, as a fresh uint8 tensor."""
        return torch.cat([layer[block] for layer in self._bytes])

    def import_block(self, block: int, data: torch.Tensor) -> None:
        """Put back what `export_block` of an equal cache gave."""
        if data.dtype != torch.uint8 or data.numel() != self.block_bytes:
            raise ValueError(f"a block is {self.block_bytes} bytes, got {data.numel()} of {data.dtype}")
        for layer, part in zip(self._bytes, data.split([layer.shape[1] for layer in self._bytes]), strict=True):
            layer[block] = part


def block_bytes(spec: ModelSpec, block_tokens: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> int:
    """Bytes of one block over all layers, as the kernels of `device` lay it out."""
    return KVCache(spec, 1, block_tokens, dtype, device).block_bytes


class PagedContext:
    """One step over a `KVCache`: stores the step's keys and values, then attends over everything up to them.

    A block whose first slot is written in this step has a new owner and is cleared first, unless the attention path masks
    what nobody wrote: finding those blocks makes the host wait for the device."""

    def __init__(self, cache: KVCache, inputs: StepInputs) -> None:
        self.positions_T = inputs.positions_T
        self._cache, self._slots_T = cache, inputs.slots_T
        if cache.must_clear:
            opened = inputs.slots_T[inputs.slots_T % cache.block_tokens == 0] // cache.block_tokens
            if opened.numel():
                cache.clear(opened)
        self.plan = paged_attention.prepare(
            inputs.query_starts_B1,
            inputs.context_lens_B,
            inputs.block_tables_BN,
            cache.block_tokens,
            inputs.prompt_lens_B,
            inputs.known,
        )

    def gqa(self, x: GqaInputs) -> torch.Tensor:
        kv = self._cache.layers[x.layer]
        q_THP = None
        if x.tables is not None:
            q_THP = paged_attention.rotate_and_write(
                kv, x.q_THP, x.k_TGP, x.v_TGV, x.norms or (None, None), x.eps, x.tables, x.interleaved, self._slots_T
            )
        if q_THP is None:
            q_THP, k_TGP = x.normed_and_rotated()
            paged_attention.write(kv, k_TGP, x.v_TGV, self._slots_T)
        return paged_attention.attend(q_THP, kv, self.plan, x.mixer.scale, x.window, x.sinks_H)

    def mla(self, x: MlaInputs) -> torch.Tensor:
        kv = self._cache.layers[x.layer]
        mla_attention.write(kv, x.latent_TC, x.rope_key_TR, self._slots_T)
        return mla_attention.attend(
            x.q_nope_THN, x.q_rope_THR, kv, x.w_uk_HNC, x.w_uv_HVC, self.plan, x.mixer.scale, x.window
        )
