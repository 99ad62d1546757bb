"""What `gpu_compile.py` launches of attention, its row operators and the sampler: tensors with shapes and no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ridgepoint.kernels.mla_attention import triton as mla
from ridgepoint.kernels.mla_attention.tunable import EARLY, ROLES
from ridgepoint.kernels.moe_experts.unsummed import UnsummedRows
from ridgepoint.kernels.norm import triton as norm
from ridgepoint.kernels.paged_attention import triton as paged
from ridgepoint.kernels.paged_attention.tunable import ROLES as PROMPT_ROLES
from ridgepoint.kernels.rope import triton as rope
from ridgepoint.kernels.sample import DeviceRules, DeviceShaping
from ridgepoint.kernels.sample import triton as sample
from ridgepoint.kernels.tuning import AttentionTile, pinned

PAGE = 16
SEQS = 64
KEPT = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int64)


def plan() -> paged.Plan:
    return paged.prepare(indices(SEQS + 1), indices(SEQS), indices(SEQS, 512), PAGE)


def paged_launch(heads: int, kv_heads: int, width: int, kept: str, window: int | None, sinks: bool) -> None:
    """A step of prompts among decoding sequences: both attention kernels, and the write."""
    tokens = 4096
    kv = paged.allocate(64, PAGE, kv_heads, width, KEPT[kept], "meta")
    paged.write(kv, meta(tokens, kv_heads, width), meta(tokens, kv_heads, width), indices(tokens))
    paged.attend(meta(tokens, heads, width), kv, plan(), width**-0.5, window, meta(heads) if sinks else None)


def roles_launch(heads: int, kv_heads: int, width: int, window: int | None, sinks: bool) -> None:
    """The same with prompts by warps that have roles."""
    with pinned("paged_prompt", PROMPT_ROLES):
        paged_launch(heads, kv_heads, width, "bf16", window, sinks)


def mla_launch(heads: int, kept: str, tokens: int = 4096) -> None:
    nope, rotary, latent, value = 128, 64, 512, 128
    kv = mla.allocate(64, PAGE, latent, rotary, KEPT[kept], "meta")
    mla.write(kv, meta(tokens, latent), meta(tokens, rotary), indices(tokens))
    lifts = meta(heads, nope, latent), meta(heads, value, latent)
    mla.attend(meta(tokens, heads, nope), meta(tokens, heads, rotary), kv, *lifts, plan(), 0.1, None)


def mla_gluon_launch(tile: AttentionTile) -> None:
    """A step that only decodes."""
    with pinned("mla_decode", tile):
        mla_launch(128, "bf16", tokens=SEQS)


def norm_launch(rows: int, width: int) -> None:
    norm.add_rms_norm(meta(rows, width), meta(rows, width), 1.0, meta(width), 1e-6)


def unsummed(rows: int, width: int, top_k: int, ordered: bool) -> UnsummedRows:
    """What experts leave to the next addition."""
    pair_row = None if ordered else meta(rows * top_k, dtype=torch.int32)
    weights = meta(rows, top_k, dtype=torch.float32)
    return UnsummedRows(y_MD=meta(rows * top_k, width), weights_TK=weights, pair_row=pair_row)


def norm_of_experts_launch(rows: int, width: int, ordered: bool) -> None:
    norm.add_rms_norm(meta(rows, width), unsummed(rows, width, 8, ordered), 1.0, meta(width), 1e-6)


def rope_launch(heads: int, kv_heads: int, width: int, interleaved: bool) -> None:
    qkv = meta(SEQS, (heads + 2 * kv_heads) * width)
    q, k, _ = qkv.split((heads * width, kv_heads * width, kv_heads * width), dim=-1)
    tables = (meta(SEQS, width // 2, dtype=torch.float32) for _ in range(2))
    rope.norm_rope(
        q.unflatten(-1, (heads, width)), k.unflatten(-1, (kv_heads, width)), meta(width), meta(width), 1e-6, *tables,
        interleaved,
    )  # fmt: skip


def store_launch(heads: int, kv_heads: int, width: int) -> None:
    qkv = meta(SEQS, (heads + 2 * kv_heads) * width)
    q, k, v = (
        part.unflatten(-1, (-1, width))
        for part in qkv.split((heads * width, kv_heads * width, kv_heads * width), dim=-1)
    )
    tables = [meta(SEQS, width // 2, dtype=torch.float32) for _ in range(2)]
    kv = paged.allocate(64, PAGE, kv_heads, width, torch.bfloat16, "meta")
    rope.norm_rope_store(q, k, v, meta(width), meta(width), 1e-6, *tables, False, kv, indices(SEQS))


def sample_launch(vocab: int) -> None:
    logits, real = meta(SEQS, vocab, dtype=torch.float32), [meta(SEQS, dtype=torch.float64) for _ in range(4)]
    sample.choose_on_device(
        logits,
        DeviceShaping(
            temperature_R=real[0], top_k_R=indices(SEQS), top_p_R=real[1], min_p_R=real[2], uniform_R=real[3]
        ),
    )
    sample.choose_on_device(logits, None)
    rules = DeviceRules(
        counts_SV=meta(SEQS, vocab, dtype=torch.int32), addends_SV=meta(SEQS, vocab, dtype=torch.float32), seats_R=indices(SEQS),
        banned_R=indices(SEQS), repetition_R=real[0], presence_R=real[1], frequency_R=real[2],
    )  # fmt: skip
    sample.edit_on_device(logits, rules)
    sample.count_on_device(rules.counts_SV, rules.seats_R, indices(SEQS))
    sample.score_on_device(logits, indices(SEQS), indices(SEQS), 20)
    sample.uniforms_on_device(indices(SEQS), indices(SEQS))


def attention_launches() -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for kept in KEPT:
        found[f"paged 32:4x128 {kept}"] = lambda k=kept: paged_launch(32, 4, 128, k, None, False)
        found[f"paged 64:8x64 {kept} window, sinks"] = lambda k=kept: paged_launch(64, 8, 64, k, 128, True)
        for heads in (16, 32, 128):
            found[f"mla {heads} {kept}"] = lambda h=heads, k=kept: mla_launch(h, k)
    for name, tile in (("asked early", EARLY), ("by roles", ROLES)):
        found[f"mla 128 bf16 {name}"] = lambda t=tile: mla_gluon_launch(t)
    for heads, kv_heads, width, window, sinks in (
        (32, 4, 128, None, False), (64, 8, 64, 128, True), (96, 8, 128, None, False), (32, 8, 128, 4096, False)
    ):  # fmt: skip
        name = f"paged {heads}:{kv_heads}x{width} bf16 by roles"
        found[name] = lambda h=heads, g=kv_heads, p=width, w=window, s=sinks: roles_launch(h, g, p, w, s)
    found["paged 96:8x128 bf16"] = lambda: paged_launch(96, 8, 128, "bf16", None, False)
    found["paged 16:2x256 bf16"] = lambda: paged_launch(16, 2, 256, "bf16", None, False)
    for width in (2048, 2880, 7168):
        found[f"norm {width}"] = lambda w=width: norm_launch(SEQS, w)
        for ordered, name in ((True, "experts in order"), (False, "experts")):
            found[f"norm {width} of {name}"] = lambda w=width, o=ordered: norm_of_experts_launch(SEQS, w, o)
    found["norm and rope 32:4x128"] = lambda: rope_launch(32, 4, 128, False)
    found["norm, rope and store 32:4x128"] = lambda: store_launch(32, 4, 128)
    found["norm and rope 32:4x128 interleaved"] = lambda: rope_launch(32, 4, 128, True)
    for vocab in (151936, 201088):
        found[f"sample {vocab}"] = lambda v=vocab: sample_launch(v)
    return found
