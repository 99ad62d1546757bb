"""A packed decoder: the same logits as unpacked, and the same bits eager and recorded."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from native_support import needs_native, rms, threads

from ridgepoint.catalog.spec import (
    DenseSpec,
    GqaSpec,
    LayerSpec,
    MlaSpec,
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
from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import NotRecordableError
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.host_inputs import HostInputs, StepSizes
from ridgepoint.models.pack import pack_decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.recorded import RecordedStep
from ridgepoint.models.step import EagerStep

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


def _unusual(kind: str) -> ModelSpec:
    """A spec with one of the facts that only some families have."""
    spec = _spec(clip=0.4 if kind == "clip" else None)
    if kind == "logit_scale":
        return replace(spec, logit_scale=0.3)
    if kind == "sparsemixer":
        moe = spec.layers[1].ffn
        assert isinstance(moe, MoeSpec)
        router = replace(moe.router, scores="sparsemixer", normalise=False, jitter_eps=0.1)
        return replace(spec, layers=(spec.layers[0], replace(spec.layers[1], ffn=replace(moe, router=router))))
    if kind == "mla":
        mixer = MlaSpec(
            num_heads=4, q_rank=40, kv_rank=32, nope_dim=16, rope_dim=8, v_dim=12, scale=24**-0.5, bias=False, output_gate="none",
            rope=RopeSpec(theta=1e4, rotary_dim=8, interleaved=True, scaling=None),
        )  # fmt: skip
        return replace(spec, layers=tuple(replace(layer, mixer=mixer, window=None) for layer in spec.layers))
    return spec


def _ending(last: str) -> ModelSpec:
    """A spec whose last layer is of this kind."""
    spec = _unusual("mla" if last == "mla" else "plain")
    return replace(spec, layers=spec.layers[::-1]) if last == "dense" else spec


UNUSUAL = ["clip", "logit_scale", "sparsemixer", "mla"]


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
            recorded = RecordedStep(
                decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), HostInputs.room(64, 5, 6)
            )
            assert torch.equal(torch.cat([recorded.run(recorded.load(step))[:3].clone() for step in STEPS]), eager)


def test_a_step_too_large_for_the_recording_is_refused() -> None:
    decoder = pack_decoder(_decoder(_spec()))
    recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), HostInputs.room(16, 3, 6))
    assert recorded.fits(StepSizes(16, 3, 3, 6))
    for sizes in (StepSizes(58, 3, 3, 6), StepSizes(16, 4, 3, 6), StepSizes(16, 3, 4, 6), StepSizes(16, 3, 3, 7)):
        assert not recorded.fits(sizes)
    with pytest.raises(ValueError, match="58 tokens"):
        recorded.run(StepSizes(58, 3, 3, 6))


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_fact_of_a_spec_can_be_recorded(kind: str, dtype: torch.dtype) -> None:
    spec = _unusual(kind)
    truth = _eager(_decoder(spec, torch.float32), torch.float32)
    decoder = pack_decoder(_decoder(spec, dtype))
    recorded = RecordedStep(decoder, KVCache(spec, 12, BLOCK, dtype), HostInputs.room(64, 5, 6))
    got = torch.cat([recorded.run(recorded.load(step))[:3].clone() for step in STEPS])
    assert torch.equal(got, _eager(decoder, dtype))
    assert rms(got - truth) <= (1e-5 if dtype == torch.float32 else 0.1) * rms(truth)


@pytest.mark.parametrize("kind", ["plain", "mla"])
@pytest.mark.parametrize("fmt", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_cache_of_codes_is_recorded_and_close(fmt: torch.dtype, kind: str) -> None:
    decoder = pack_decoder(_decoder(_unusual(kind)))
    plain = _eager(decoder)
    cache = KVCache(decoder.spec, 12, BLOCK, fmt)
    recorded = RecordedStep(decoder, cache, HostInputs.room(64, 5, 6))
    got = torch.cat([recorded.run(recorded.load(step))[:3].clone() for step in STEPS])
    assert rms(got - plain) <= 0.1 * rms(plain)
    other = KVCache(decoder.spec, 12, BLOCK, fmt)  # blocks travel as bytes
    for block in range(12):
        other.import_block(block, cache.export_block(block))
        assert torch.equal(other.export_block(block), cache.export_block(block))
    again = RecordedStep(decoder, other, HostInputs.room(64, 5, 6))
    assert torch.equal(again.run(again.load(STEPS[2]))[:3], got[-3:])


WANTED = ("last", "none", "every")


def _journey(seed: int) -> list[StepInputs]:
    """Three sequences that advance by single tokens and by chunks. Of each the last row is wanted, or none, or all of them; of one
    whole step none, and of the last step all, which depend on everything that was stored."""
    draw, lengths, steps = random.Random(seed), [0, 0, 0], []
    for number in range(5):
        queries = [draw.choice((1, 1, 7, 12)) for _ in lengths]
        lengths = [length + count for length, count in zip(lengths, queries, strict=True)]
        step = _step(lengths, queries, number)
        sampled, scored = [], []
        for first, count in zip(step.query_starts_B1.tolist(), queries, strict=False):
            wanted = {3: "none", 4: "every"}.get(number) or draw.choice(WANTED)
            sampled += [first + count - 1] if wanted == "last" else []
            scored += range(first, first + count) if wanted == "every" else []
        steps.append(replace(step, logit_rows_R=torch.tensor(sampled + scored, dtype=torch.int64)))
    return steps


@pytest.mark.parametrize("fmt", ["bf16", "int8-a8", "int4-32"])
@pytest.mark.parametrize("last", ["moe", "dense", "mla"])
def test_wanted_rows_have_the_bits_that_they_have_among_all_rows(last: str, fmt: str) -> None:
    spec = _ending(last)
    decoder = pack_decoder(_decoder(spec), fmt)
    slow_cache, eager_cache, cache = (KVCache(spec, 12, BLOCK, torch.bfloat16) for _ in range(3))
    recorded, eager = RecordedStep(decoder, cache, HostInputs.room(40, 40, 6)), EagerStep(decoder, eager_cache)
    for seed in range(4):
        for step in _journey(seed):
            rows_R = step.logit_rows_R
            everything_TV = decoder.logits(decoder.hidden(step.token_ids_T, PagedContext(slow_cache, step)))
            assert torch.equal(eager.run(step), everything_TV[rows_R])
            assert torch.equal(recorded.run(recorded.load(step))[: len(rows_R)], everything_TV[rows_R])


@pytest.mark.parametrize("last", ["moe", "dense", "mla"])
def test_after_the_last_attention_operators_run_on_wanted_rows(last: str) -> None:
    decoder = pack_decoder(_decoder(_ending(last)))
    recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), HostInputs.room(64, 5, 6))
    operators = recorded.recording.operators
    cut = next(i for i, operator in enumerate(operators) if operator.rows_from == native.LOGIT_ROWS)
    before, after = operators[:cut], operators[cut:]
    assert {(operator.rows_from, operator.rows) for operator in before} == {(native.TOKEN_ROWS, 64)}
    assert {(operator.rows_from, operator.rows) for operator in after} == {(native.LOGIT_ROWS, 5)}
    attention = {native.AttentionOp, native.LiftedAttentionOp, native.UnliftedLinearOp}
    assert type(before[-1]) in attention and not attention & {type(operator) for operator in after}
    # rows of the residual stream and of attention; then output projection, sum and norm, feed-forward, last norm and head
    assert [type(operator) for operator in after[:4]] == [native.EmbedOp] * 2 + [native.LinearOp, native.NormOp]
    assert [type(operator) for operator in after[-2:]] == [native.NormOp, native.LinearOp]
    assert (native.MoeOp in {type(operator) for operator in after}) == (last != "dense")
    assert (native.MoeOp in {type(operator) for operator in before}) == (last == "dense")


def test_work_outside_the_native_operators_is_not_recorded_silently() -> None:
    unpacked = _decoder(_spec())
    with pytest.raises(NotRecordableError):
        RecordedStep(unpacked, KVCache(unpacked.spec, 12, BLOCK, torch.bfloat16), HostInputs.room(16, 3, 6))
    packed, blocks_of_torch = pack_decoder(_decoder(_spec())), 8
    with pytest.raises(NotRecordableError):
        RecordedStep(packed, KVCache(packed.spec, 12, blocks_of_torch, torch.bfloat16), HostInputs.room(16, 3, 6))


def test_profile_names_every_operator() -> None:
    decoder = pack_decoder(_decoder(_spec()))
    recorded = RecordedStep(decoder, KVCache(decoder.spec, 12, BLOCK, torch.bfloat16), HostInputs.room(64, 5, 6))
    recorded.run(recorded.load(STEPS[0]))
    seconds = recorded.recording.profile(58, 3)
    assert len(seconds) == len(recorded.recording) and all(s >= 0 for s in seconds)
    assert {"MoeOp", "AttentionOp", "LinearOp", "NormOp"} <= {type(o).__name__ for o in recorded.recording.operators}


def test_a_float32_decoder_packs_only_as_float32() -> None:
    with pytest.raises(ConfigError, match="float32"):
        pack_decoder(_decoder(_spec(), torch.float32), "bf16")
