"""Latent decoding by warps with roles: its source, emulated in many orders, against attention in float64, and refused when anything
that one partition tells another is taken out."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import gluon_emulator
import pytest
import torch
from gluon_memory import eager, shuffled
from latent_splits import case, disagreement, error_of

from ridgepoint.kernels.mla_attention import gluon_seesaw
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.mla_attention.tunable import EARLY, ROLES, LatentLayer, split_tiles

TOLERANCE = 5e-3  # weights and partial results are bf16
# Tiles of an item: 1 to 5, odd after odd and after even, items of one tile in a row; three programs share the items.
CASES = {
    "odd and even": ([320, 1, 1, 200], 192, 0),
    "split": ([130, 1, 64], 128, 0),
    "one tile": ([1, 64, 63, 2, 17], 256, 0),
    "whole, a tile over": ([257], 1024, 0),
    "windows": ([300, 77], 128, 150),
}
ORDERS = {
    **{f"{places}, copies late": lambda p=places: eager(*p) for places in permutations(range(3))},
    **{f"{places}, copies at once": lambda p=places: eager(*p, late=False) for places in permutations(range(3))},
    **{f"shuffled {seed}": lambda s=seed: shuffled(s) for seed in range(4)},
}


@pytest.mark.parametrize("name", CASES)
def test_it_attends_in_every_order(name: str) -> None:
    for order in ORDERS.values():
        assert error_of(gluon_seesaw, case(*CASES[name]), order) < TOLERANCE


TOLD = ("fence_async_shared", "mbarrier.wait", "mbarrier.arrive", "async_copy.mbarrier_arrive")


@pytest.mark.parametrize("line", [line for name in TOLD for line in gluon_emulator.statements(gluon_seesaw, name)])
def test_whatever_is_taken_out_is_missed(line: int) -> None:
    """In every order: what is wrong is found by what partitions know of each other, not by luck."""
    module = gluon_emulator.without(gluon_seesaw, line)
    for order in ORDERS.values():
        with pytest.raises(AssertionError, match=r"reads|writes|nobody can go on"):
            error_of(module, case(*CASES["odd and even"]), order)


def test_attention_by_roles_agrees_with_attention_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement(gluon_seesaw, ROLES, monkeypatch) < 1e-2


def test_queries_are_copied_only_where_the_compiler_would_not_know_how_they_lie() -> None:
    rows = torch.arange(2 * 64 * 200, dtype=torch.bfloat16).view(2, 64, 200)
    assert path._aligned(rows[:, :, :192][..., 128:]).stride() == (64 * 64, 64, 1), "200 is no multiple of 16"
    wide = torch.zeros(2, 64, 192, dtype=torch.bfloat16)
    assert path._aligned(wide[..., 128:]).data_ptr() == wide.data_ptr() + 256


def test_the_tuner_tries_it_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "INTERPRETED", SimpleNamespace(value=False))
    lift = torch.empty(128, 128, 512, dtype=torch.bfloat16, device="meta")
    layer = LatentLayer(
        kv=path.allocate(4, 16, 512, 64, torch.bfloat16, "meta"), block_tokens=16, w_uk_HNC=lift, w_uv_HVC=lift, rope_dim=64,
        scale=1.0, window=None,
    )  # fmt: skip
    usual = path.split_tile(128, 512, 2, False)
    tried = split_tiles(layer, 64, 4096, usual)
    assert tried[0] == usual and {ROLES, EARLY} < set(tried), "it has a place among the few that are timed"
