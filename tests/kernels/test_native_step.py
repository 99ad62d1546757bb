"""A packed decoder: the same logits as unpacked, and the same bits eager and recorded."""

from __future__ import annotations

import pytest
import torch
from native_support import needs_native, rms, threads

from ridgepoint.catalog.spec import (
    DenseSpec,
    GqaSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    PlainResidual,
    RopeSpec,
    RouterSpec,
    SharedExpertSpec,
    SwiGlu,
)
from ridgepoint.errors import ConfigError
from ridgepoint.kernels.tensor_call import NotRecordableError
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import pack_decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.recorded import RecordedStep

pytestmark = needs_native
BLOCK = 16


def _spec(*, tied: bool = False, clip: float | None = None) -> ModelSpec:
    mixer = GqaSpec(
        num_heads=4, num_kv_heads=2, head_dim=32, v_head_dim=32, scale=32**-0.5,
        rope=RopeSpec(theta=1e4, rotary_dim=32, interleaved=False, scaling=None), qkv_bias=True, o_bias=False,
        qk_norm="per_head", sinks=True, qkv_clip=clip, output_gate="none", v_from_k=False,
    )  # fmt: skip
    router = RouterSpec(
        scores="softmax", normalise=True, scale=1.0, bias=True, correction_bias=False, num_groups=1, topk_groups=1,
        group_score="max", jitter_eps=None,
    )  # fmt: skip
    moe = MoeSpec(
        num_experts=8, top_k=3, width=48, activation=SwiGlu(), bias=True, router=router,
        shared=SharedExpertSpec(width=40, gated=True), latent_dim=None, latent_norm=False,
    )  # fmt: skip
    dense = DenseSpec(width=72, activation=SwiGlu(), bias=False)
    layers = [
        LayerSpec(mixer=mixer, ffn=f, window=w, indexer=None, kv_from_layer=None, post_norms=False)
        for f, w in ((dense, 9), (moe, None))
    ]
    return ModelSpec(
        family="test", vocab_size=300, d_model=96, layers=tuple(layers), norm=NormSpec(kind="rms", eps=1e-6),
        tied_embeddings=tied, head_bias=False, embedding_scale=1.0, residual=PlainResidual(), residual_scale=1.0, logit_scale=1.0,
        max_context=128, bos_ids=(0,), eos_ids=(1,),
    )  # fmt: skip


def _decoder(spec: ModelSpec, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    decoder = Decoder(spec, dtype)
    decoder.initialise(seed=1, std=0.08)
    return decoder.eval().requires_grad_(False)


def _step(contexts: list[int], queries: list[int], seed: int) -> StepInputs:
    blocks = 4
    tables = torch.arange(len(contexts) * blocks).view(-1, blocks)
    position = torch.cat([torch.arange(c - q, c) for c, q in zip(contexts, queries, strict=True)])
    sequence = torch.repeat_interleave(torch.arange(len(contexts)), torch.tensor(queries))
    starts = torch.tensor([0, *queries]).cumsum(0)
    made = torch.Generator().manual_seed(seed)
    return StepInputs(
        token_ids_T=torch.randint(0, 300, (len(position),), generator=made),
        positions_T=position,
        slots_T=tables[sequence, position // BLOCK] * BLOCK + position % BLOCK,
        query_starts_B1=starts,
        context_lens_B=torch.tensor(contexts),
        block_tables_BN=tables,
        logit_rows_R=starts[1:] - 1,
    )


STEPS = [_step([20, 33, 5], [20, 33, 5], 0), _step([21, 34, 6], [1, 1, 1], 1), _step([22, 40, 7], [1, 6, 1], 2)]


def _eager(decoder: Decoder, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    cache, out = KVCache(decoder.spec, 12, BLOCK, dtype), []
    for step in STEPS:
        x_TD = decoder.hidden(step.token_ids_T, PagedContext(cache, step))
        out.append(decoder.logits(x_TD[step.logit_rows_R]))
    return torch.cat(out)


@pytest.mark.parametrize("tied", [False, True])
def test_packing_changes_nothing_but_rounding(tied: bool) -> None:
    spec = _spec(tied=tied)
    truth = _eager(_decoder(spec, torch.float32), torch.float32)
    packed_f32 = _eager(pack_decoder(_decoder(spec, torch.float32)), torch.float32)
    assert rms(packed_f32 - truth) <= 1e-5 * rms(truth)
    plain, packed = _eager(_decoder(spec)), _eager(pack_decoder(_decoder(spec)))
    assert rms(packed - truth) <= 1.25 * rms(plain - truth)


def test_a_recorded_step_has_the_bits_of_the_eager_one() -> None:
    decoder = pack_decoder(_decoder(_spec()))
    eager = _eager(decoder)
    for count in (1, 2, 3):
        with threads(count):
            recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), 64, 5, 6)
            assert torch.equal(torch.cat([recorded.run(step).clone() for step in STEPS]), eager)


def test_a_step_too_large_for_the_recording_is_refused() -> None:
    decoder = pack_decoder(_decoder(_spec()))
    recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), 16, 3, 6)
    assert not recorded.fits(STEPS[0])
    assert recorded.fits(STEPS[1])
    with pytest.raises(ValueError, match="58 tokens"):
        recorded.run(STEPS[0])


def test_work_outside_the_native_operators_is_not_recorded_silently() -> None:
    clipped = pack_decoder(_decoder(_spec(clip=5.0)))
    with pytest.raises(NotRecordableError, match="clamp"):
        RecordedStep(clipped, KVCache(clipped.spec, 12, BLOCK, torch.bfloat16), 16, 3, 6)
    unpacked = _decoder(_spec())
    with pytest.raises(NotRecordableError):
        RecordedStep(unpacked, KVCache(unpacked.spec, 12, BLOCK, torch.bfloat16), 16, 3, 6)


def test_profile_names_every_operator() -> None:
    decoder = pack_decoder(_decoder(_spec()))
    recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), 64, 5, 6)
    recorded.load(STEPS[0])
    profile = recorded.recording.profile(58, 3)
    assert len(profile) == len(recorded.recording)
    assert {"Moe", "Attention", "Linear", "Norm"} <= {name for name, _ in profile}
    assert all(seconds >= 0 for _, seconds in profile)


def test_a_float32_decoder_packs_only_as_float32() -> None:
    with pytest.raises(ConfigError, match="float32"):
        pack_decoder(_decoder(_spec(), torch.float32), "bf16")
