"""What a decoder has tuned: each kind of kernel it runs, in buckets that meet, on its own weights and blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from products import DEVICE

import gpu_model
from ridgepoint.catalog.models import catalog_model
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import pack_for_device
from ridgepoint.kernels.dispatch import forced
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
