"""Recipes: the shipped ones are valid, and a mistake is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tiny_recipe import TINY, tiny

from ridgepoint.errors import ConfigError
from ridgepoint.train.family import spec_of
from ridgepoint.train.flops import parameter_counts
from ridgepoint.train.optimizer import balance, learning_rate, make_adamw
from ridgepoint.train.recipe import load_recipe, parse_recipe
from ridgepoint.train.weights import initial_masters

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("run", {"stepz": 3}, "stepz"),
        ("model", {"num_kv_heads": 3}, "num_heads 4 is no multiple of model.num_kv_heads 3"),
        ("model", {"num_kv_heads": 0}, "at `\\$.model.num_kv_heads`, got 0"),
        ("model", {"top_k": 5}, "top_k 5"),
        ("model", {"num_dense_layers": 3}, "num_dense_layers 3 is above model.num_layers 2"),
        ("model", {"rotary_frac": 0.3}, "even number, got 2.4"),
        ("run", {"tokens_per_microbatch": 96}, "256 must be whole microbatches of 96"),
        ("run", {"tokens_per_microbatch": 0}, "got 0"),
        ("run", {"steps": 0}, "got 0"),
        ("corpus", {"hold_out_one_in": 0}, "got 0"),
        ("optimizer", {"lr": -1.0}, "got -1.0"),
        ("optimizer", {"lr": float("nan")}, "lr"),
        ("optimizer", {"lr": float("inf")}, "lr"),
        ("optimizer", {"lr": "fast"}, "lr"),
        ("tokenizer", {"vocab_size": 100}, "257"),
    ],
)
def test_mistakes_are_named(table: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**{table: change})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"seq_len": 0}], "phases.*got 0"),
        ([{"seq_len": 100}], "seq_len 100 exceeds max_context 64"),
        ([{"seq_len": 48}], "128 must be whole sequences of 48"),
        ([{"tests_frac": 2.0}], "got 2.0"),
        ([{"until_frac": 0.5}], "rise to until_frac 1.0"),
        ([{"until_frac": 1.0}, {"until_frac": 0.5}, {}], "rise to until_frac 1.0"),
        ([], "rise to until_frac 1.0"),
    ],
)
def test_phases_fit_the_model_and_rise(changes: list[dict[str, Any]], message: str) -> None:
    whole = {"until_frac": 1.0, "seq_len": 32, "tests_frac": 0.0}
    with pytest.raises(ConfigError, match=message):
        tiny(phases=[whole | change for change in changes])


def test_a_missing_key_is_named() -> None:
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    del data["run"]["seed"]
    with pytest.raises(ConfigError, match="seed"):
        parse_recipe(data)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_the_shipped_pair_differs_in_sparsity_alone() -> None:
    moe, dense = load_recipe(RECIPES / "stdlib.toml"), load_recipe(RECIPES / "stdlib-dense.toml")
    assert parameter_counts(moe)[1] == pytest.approx(parameter_counts(dense)[1], rel=0.01)
    assert parameter_counts(moe)[0] <= 22e6
    same = msgspec.structs.replace(moe.model, num_dense_layers=6, dense_width=dense.model.dense_width)
    assert dense.model == same
    assert (dense.corpus, dense.tokenizer, dense.optimizer, dense.phases) == (
        moe.corpus, moe.tokenizer, moe.optimizer, moe.phases,
    )  # fmt: skip
    assert msgspec.structs.replace(dense.run, workers=moe.run.workers) == moe.run


def test_counts_are_those_of_the_tensors() -> None:
    recipe = tiny()
    masters = initial_masters(spec_of(recipe.model, recipe.tokenizer.vocab_size), 0)
    total = sum(tensor.numel() for tensor in masters.parameters() if tensor.ndim >= 2)
    assert parameter_counts(recipe)[0] == total


def test_the_schedule_warms_up_and_ends_where_it_says() -> None:
    table = tiny().optimizer
    rates = [learning_rate(table, step, 50) for step in range(50)]
    assert rates[0] == table.lr / 2
    assert max(rates) == rates[1] == rates[2] == table.lr
    assert rates[-1] == pytest.approx(table.lr * table.final_lr_frac)
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))


def test_norm_scales_are_not_decayed() -> None:
    recipe = tiny()
    masters = initial_masters(spec_of(recipe.model, 300), 0)
    plain = make_adamw(list(masters.parameters()), recipe.optimizer).param_groups[1]
    norms = {id(tensor) for name, tensor in masters.named_parameters() if "norm" in name}
    assert plain["weight_decay"] == 0.0
    assert {id(tensor) for tensor in plain["params"]} == norms


def test_balancing_pulls_a_skewed_router_level() -> None:
    """A router whose logits favour expert 0: after updates by load alone, every expert has its share."""
    draw = torch.Generator().manual_seed(0)
    scores = (torch.randn(512, 8, generator=draw) + torch.tensor([3.0] + [0.0] * 7)).sigmoid()
    bias = torch.zeros(8)

    def load() -> torch.Tensor:
        return torch.bincount((scores + bias).topk(2).indices.flatten(), minlength=8)

    before = load().max() / load().float().mean()
    for _ in range(300):
        balance(bias, load(), 0.005)
    assert before > 3
    assert load().max() / load().float().mean() < 1.15
