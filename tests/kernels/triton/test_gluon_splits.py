"""Latent decoding in Gluon: its source, emulated, against attention in float64, and refused when a wait is taken out."""

from __future__ import annotations

from types import SimpleNamespace

import gluon_emulator
import pytest
import torch
from latent_splits import C, R, case, disagreement, error_of

from ridgepoint.kernels.mla_attention import gluon_splits
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.mla_attention.tunable import EARLY

TOLERANCE = 5e-3  # weights and partial results are bf16
CASES = [([130, 1, 64], 128, 0), ([300, 77], 128, 150), ([65], 256, 0)]
WAITED_FOR = ("fence_async_shared", "gl.thread_barrier", "async_copy.wait_group")


@pytest.mark.parametrize(("contexts", "split", "window"), CASES)
def test_it_attends(contexts: list[int], split: int, window: int) -> None:
    assert error_of(gluon_splits, case(contexts, split, window)) < TOLERANCE


@pytest.mark.parametrize(
    "line", [line for name in WAITED_FOR for line in gluon_emulator.statements(gluon_splits, name)]
)
def test_whatever_is_taken_out_is_missed(line: int) -> None:
    with pytest.raises(AssertionError, match=r"reads|writes"):
        error_of(gluon_emulator.without(gluon_splits, line), case([200, 30], 256, 0))


def test_attention_that_asks_early_agrees_with_attention_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement(gluon_splits, EARLY, monkeypatch) < 1e-2


def test_only_shapes_that_it_serves_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not path.may_use_gluon(128, C, R, torch.bfloat16), "the interpreter does not know it"
    monkeypatch.setattr(path, "INTERPRETED", SimpleNamespace(value=False))
    assert path.may_use_gluon(128, C, R, torch.bfloat16)
    for heads, latent, rotary, kept in (
        (16, C, R, torch.bfloat16),
        (128, 256, R, torch.bfloat16),
        (128, C, R, torch.int8),
    ):
        assert not path.may_use_gluon(heads, latent, rotary, kept)
