"""Of the last layer only wanted rows leave attention, and their hidden states are those they have among all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import parity
from ridgepoint.cost.flops import forward_flops
from ridgepoint.kernels.dispatch import forced
from ridgepoint.models.checkpoint import load
from ridgepoint.models.decoder import Decoder, Wanted
from ridgepoint.nn.context import CausalContext

IDS_T = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(0))
ROWS = ([23], [11, 3, 23], [])


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss", "deepseek_v3", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder: Path = tmp_path_factory.mktemp("model")
    parity.make_checkpoint(next(case for case in parity.CASES if case.name == request.param), folder)
    return load(folder, torch.float32).to(torch.float64)


def rows_of(rows: list[int]) -> Wanted:
    return lambda x: x.index_select(0, torch.tensor(rows, dtype=torch.int64))


def hidden(decoder: Decoder, wanted: Wanted | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.hidden(IDS_T, CausalContext(1, len(IDS_T)), wanted)


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_wanted_rows_are_rows_of_all(decoder: Decoder, rows: list[int], path: str) -> None:
    with forced(path):
        every, some = hidden(decoder), hidden(decoder, rows_of(rows))
    assert some.shape == (len(rows), every.shape[1])
    assert torch.allclose(some, every[rows], rtol=0, atol=1e-5)  # routers are float32


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_last_feed_forward_sees_no_other_row(decoder: Decoder, rows: list[int]) -> None:
    seen: list[int] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))

    hooks = [block.ffn.register_forward_pre_hook(count) for block in decoder.layers]
    hidden(decoder, rows_of(rows))
    for hook in hooks:
        hook.remove()
    assert seen == [len(IDS_T)] * (len(decoder.layers) - 1) + ([len(rows)] if rows else [])


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_flops_saved_are_those_that_the_formula_leaves_out(decoder: Decoder, rows: list[int]) -> None:
    def counted(wanted: Wanted | None) -> int:
        with FlopCounterMode(display=False) as counter:
            decoder.logits(hidden(decoder, wanted))
        return counter.get_total_flops()

    tokens = float(len(IDS_T))
    every, some = (float(forward_flops(decoder.spec, tokens, logit_rows=n)) for n in (tokens, float(len(rows))))
    # The torch path weighs experts' results by a product, which the counter counts.
    assert counted(None) - counted(rows_of(rows)) == pytest.approx(every - some, rel=0.01)
