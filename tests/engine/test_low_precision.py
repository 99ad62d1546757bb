"""Quantised checkpoints through the real engine: greedy tokens are those of the dequantised model run in float32, but for
near ties that the rounding of activations to bf16 may decide either way."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch

from ridgepoint.engine.llm import LLM
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.torch_engine import engine_around, load_decoder
from ridgepoint.kernels import native
from ridgepoint.models.checkpoint import load
from ridgepoint.nn.context import CausalContext
from ridgepoint.quantize.convert import convert
from ridgepoint.quantize.formats import FORMATS, format_named
from ridgepoint.sched.params import SamplingParams

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")
PROMPTS = [[5, 6, 7], list(range(1, 40)), [9] * 17]
NEAR_TIE_FRAC = 0.03  # of the logits' range: bf16 keeps 2^-9 of an activation, and a few layers add up


@pytest.fixture(scope="module", autouse=True)
def one_thread():  # type: ignore[no-untyped-def]
    before = native.num_threads()
    native.set_num_threads(1)
    yield
    native.set_num_threads(before)


@torch.no_grad()
def assert_greedy(folder: Path, prompt: list[int], tokens: list[int]) -> None:
    """Every token, given those before it, is the best of the dequantised float32 model, or as good as."""
    ids = torch.tensor(prompt + tokens)
    logits_TV = load(folder, torch.float32)(ids, CausalContext(1, len(ids)))[len(prompt) - 1 : -1]
    behind_T = logits_TV.amax(-1) - logits_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    near_T = behind_T <= NEAR_TIE_FRAC * (logits_TV.amax(-1) - logits_TV.amin(-1))
    assert int(near_T.sum()) >= 0.9 * len(tokens)  # a near tie between experts, too, may fall either way
    assert int((behind_T == 0).sum()) >= 0.8 * len(tokens)


@pytest.mark.parametrize(("fmt", "asked"), [*((fmt, None) for fmt in FORMATS), ("int8", "int8")])
def test_greedy_tokens_are_those_of_the_dequantised_model(tmp_path: Path, fmt: str, asked: str | None) -> None:
    convert(checkpoints.write(tmp_path / "plain", "qwen3_moe", std=0.3), tmp_path / "model", format_named(fmt))
    told: list[str] = []
    options = EngineOptions(
        model=str(tmp_path / "model"), dtype="bfloat16", num_blocks=64, max_num_seqs=4, weight_format=asked, threads=1
    )
    decoder = load_decoder(tmp_path / "model", options, told.append)
    engine = engine_around(decoder, options, told.append, name="m", eos_ids=())
    assert any(" as stored" in line for line in told) and any(line.startswith("step recorded") for line in told)
    made = LLM(engine).generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0.0))
    for prompt, completion in zip(PROMPTS, made, strict=True):
        assert_greedy(tmp_path / "model", prompt, completion.token_ids)


def test_a_plain_checkpoint_is_served_in_an_asked_for_format(tmp_path: Path) -> None:
    """int4 made at the start and int4 made by `quantize` are the same codes, so the same tokens."""
    plain = checkpoints.write(tmp_path / "plain", "qwen3_moe", std=0.3)
    convert(plain, tmp_path / "int4", format_named("int4-g32"), exclude=["lm_head"])
    tokens = []
    for folder, head in ((plain, "int4-32"), (tmp_path / "int4", "int4-32")):
        options = EngineOptions(model=str(folder), dtype="bfloat16", num_blocks=64, weight_format=head, threads=1)
        decoder = load_decoder(folder, options, lambda line: None)
        engine = engine_around(decoder, options, lambda line: None, name="m", eos_ids=())
        made = LLM(engine).generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0.0))
        tokens.append([completion.token_ids for completion in made])
    assert tokens[0] == tokens[1]
