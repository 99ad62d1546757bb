"""What a decoder has tuned: each kind of kernel it runs, in buckets that meet, on its own weights and blocks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from products import DEVICE

import gpu_model
from ridgepoint.catalog.models import catalog_model
from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import FORMATS, DeviceWeight, pack_for_device, unfilled_for_device
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.gemm import candidates as gemm_candidates
from ridgepoint.kernels.linear.tunable import linear_problem
from ridgepoint.kernels.mla_attention import tunable as mla
from ridgepoint.kernels.mla_attention.triton_lifted import lift_of
from ridgepoint.kernels.moe_experts.tunable import BY_ROLES, ExpertLayer, expert_problem
from ridgepoint.kernels.paged_attention import tunable as paged
from ridgepoint.kernels.paged_attention.triton import prepare
from ridgepoint.kernels.paged_attention.triton_plan import Cut
from ridgepoint.models.decoder import Block, Decoder
from ridgepoint.models.paged import KVCache
from ridgepoint.models.tunables import problems_of
from ridgepoint.nn.linear import replace_weight


@pytest.fixture(autouse=True)
def no_table(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("RIDGEPOINT_TUNED", str(tmp_path / "none.toml"))
    tuning.forget()
    yield
    tuning.forget()


def with_packed_output(decoder: Decoder) -> Decoder:
    for block in decoder.layers:
        assert isinstance(block, Block)
        replace_weight(block.mixer.o, "weight", pack_for_device(block.mixer.o.weight, "int8"))
    return decoder


@torch.inference_mode()
def test_problems_cover_what_a_decoder_runs() -> None:
    decoder = with_packed_output(gpu_model.random_decoder(gpu_model.small_spec(True), torch.device(DEVICE)))
    with forced("triton"):
        cache = KVCache(decoder.spec, 9, 4, torch.bfloat16, DEVICE)
    problems = problems_of(decoder, cache, max_seqs=4, max_tokens=8, max_context=12)
    assert [problem.op for problem in problems] == [
        "experts", "paged_decode", "linear", "experts", "paged_decode", "linear", "experts", "linear", "paged_prompt",
    ]  # fmt: skip
    assert len({problem.key for problem in problems}) == len(problems)
    ends = {
        op: [p.up_to for p in problems if p.op == op] for op in ("experts", "paged_decode", "linear", "paged_prompt")
    }
    end = float(1 << 30)
    assert ends == {
        "experts": [0.25, 1.0, end / 4],
        "paged_decode": [1.0, end],
        "linear": [1.0, 4.0, end],
        "paged_prompt": [end],
    }
    for problem in (problems[3], problems[4], problems[5], problems[8]):
        calls = problem.calls()
        assert len(calls) == 2, "a layer each"
        out = calls[-1]()
        assert bool(out.isfinite().all()) and out.shape[0] == {"paged_prompt": 8}.get(problem.op, 4)
        for candidates in problem.rounds:
            tried = candidates(problem.estimate)
            assert tried[0] == problem.estimate and len(tried) == len(set(tried)) <= 6


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_has_tiles_to_try_beside_the_shipped_one(fmt: str) -> None:
    """Few tokens and many, of experts and linears, without memory."""

    def packed(num: int, outputs: int, inputs: int, glu: bool) -> DeviceWeight:
        return unfilled_for_device(fmt, num, outputs, inputs, glu=glu, stacked=num > 1, device="meta")

    layer = ExpertLayer(
        gate_up=packed(128, 1536, 2048, True), down=packed(128, 2048, 768, False), activation=SwiGlu(), top_k=8
    )
    for size in (4, 8192):
        for problem in (
            expert_problem([layer], size, size),
            linear_problem([packed(1, 8192, 4096, False)], size, size),
        ):
            assert problem.kind == packed(1, 128, 128, False).product
            for candidates in problem.rounds:
                tried = candidates(problem.estimate)
                assert tried[0] == problem.estimate and len(set(tried)) > 1, (fmt, problem.op, size)


@pytest.mark.parametrize(("context", "window"), [(170, None), (1024, None), (8192, None), (8192, 512)])
def test_prompts_of_latent_layers_are_tuned_where_they_are_absorbed(context: int, window: int | None) -> None:
    layer = mla.LatentLayer(
        kv=torch.empty(9, 16, 576, dtype=torch.bfloat16, device="meta"), block_tokens=16, rope_dim=64, scale=1.0, window=window,
        w_uk_HNC=torch.empty(128, 128, 512, device="meta"), w_uv_HVC=torch.empty(128, 128, 512, device="meta"),
    )  # fmt: skip
    lift = lift_of(512, 128, 128)
    assert lift is not None
    queries = mla.absorbed_queries(layer, context)
    starts, contexts = torch.tensor([0, queries, 2 * queries]), torch.full((2,), context)
    plan = prepare(starts.to(DEVICE), contexts.to(DEVICE), torch.zeros(2, 512, dtype=torch.int64, device=DEVICE), 16)
    absorbed = plan.work(Cut(window, 1, 1, lift=lift), 2 * queries)
    assert queries > 1 and absorbed.counts.tolist() == [0, 2 * queries]
    assert plan.work(Cut(window, 1, 1, lift=lift, lifted=True), 2 * queries).counts.tolist() == [0, 0]


def test_latent_layers_are_problems_too() -> None:
    """On tensors without memory: which problems there are is a matter of shapes."""
    spec = catalog_model("deepseek-v3").spec
    decoder = Decoder(dataclasses.replace(spec, layers=spec.layers[-2:]), torch.bfloat16, device="meta")
    with forced("triton"):
        cache = KVCache(decoder.spec, 9, 16, torch.bfloat16, "meta")
    problems = problems_of(decoder, cache, max_seqs=64, max_tokens=8192, max_context=4096)
    assert {problem.op for problem in problems} == {"experts", "mla_decode", "mla_prompt"}
    assert [problem.size for problem in problems if problem.op == "mla_decode"] == [1, 4, 16, 64]
    assert all(problem.shape == (128, 512, 64, 0) for problem in problems if problem.op.startswith("mla"))


def test_warps_with_roles_are_tried_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts and of experts with 64 to 256 rows; never in the interpreter, which does not know them."""

    def prompt_tiles(
        width: int = 128, page: int = 16, kept: torch.dtype = torch.bfloat16
    ) -> list[tuning.AttentionTile]:
        layer = paged.PagedLayer(
            kv=paged.path.allocate(9, page, 4, width, kept, "meta"), block_tokens=page, num_heads=32, num_kv_heads=4, head_dim=width,
            scale=1.0, window=None, sinks_H=None,
        )  # fmt: skip
        return paged.query_tiles(layer, 2048, paged.path.query_tile(width, 8, 2, layer.is_coded))

    def expert_tiles(tokens: int, bias: torch.Tensor | None = None) -> list[object]:
        gate_up, down = torch.empty(128, 1536, 2048, device="meta"), torch.empty(128, 2048, 768, device="meta")
        layer = ExpertLayer(gate_up=gate_up, down=down, activation=SwiGlu(), top_k=8, bias_gate_up=bias)
        problem = expert_problem([layer], tokens, tokens)
        return list(problem.rounds[0](problem.estimate))

    assert paged.ROLES not in prompt_tiles() and BY_ROLES not in expert_tiles(2048)
    for module in (paged.path, gemm_candidates):
        monkeypatch.setattr(module, "INTERPRETED", SimpleNamespace(value=False))
    assert paged.ROLES in prompt_tiles() and paged.ROLES in prompt_tiles(width=64)
    for unserved in ({"width": 256}, {"page": 4}, {"page": 48}, {"kept": torch.int8}):
        assert paged.ROLES not in prompt_tiles(**unserved)  # type: ignore[arg-type]
    assert BY_ROLES in expert_tiles(2048) and BY_ROLES in expert_tiles(1500)
    assert BY_ROLES not in expert_tiles(512) and BY_ROLES not in expert_tiles(8192)
    assert BY_ROLES not in expert_tiles(2048, bias=torch.empty(128, 1536, device="meta"))
