"""A recipe that trains in a second, and a library of a few files for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from ridgepoint.train.recipe import Recipe, parse_recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"hold_out_one_in": 3, "exclude": ["skipped/"]},
    "tokenizer": {"vocab_size": 300, "cut_every_chars": 50},
    "model": {
        "d_model": 32,
        "num_layers": 2,
        "num_dense_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rotary_frac": 0.5,
        "rope_theta": 10000.0,
        "dense_width": 48,
        "num_experts": 4,
        "top_k": 2,
        "expert_width": 16,
        "num_shared_experts": 1,
        "routed_scale": 1.5,
        "max_context": 64,
        "norm_eps": 1e-5,
        "tied_embeddings": False,
    },
    "optimizer": {
        "lr": 5e-3,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "warmup_steps": 2,
        "final_lr_frac": 0.1,
        "balance_rate": 0.01,
    },
    "phases": [
        {"until_frac": 0.5, "seq_len": 32, "tests_frac": 0.3},
        {"until_frac": 1.0, "seq_len": 64, "tests_frac": 0.0},
    ],
    "run": {
        "seed": 3,
        "steps": 6,
        "tokens_per_step": 256,
        "tokens_per_microbatch": 128,
        "workers": 2,
        "compile": False,
        "log_every_steps": 2,
        "evaluate_every_steps": 3,
        "evaluate_bytes": 2000,
        "checkpoint_every_s": 1e9,
    },
}


def tiny(**tables: dict[str, Any]) -> Recipe:
    """TINY with some keys of some tables replaced: `tiny(run={"workers": 1})`."""
    data = {key: {**value, **tables.get(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()}
    data |= {key: value for key, value in tables.items() if not isinstance(TINY[key], dict)}
    return parse_recipe(msgspec.json.decode(msgspec.json.encode(data)))


def write_library(root: Path) -> Path:
    """Nine modules, three of them with tests, one excluded folder and one file that is no UTF-8."""
    for name in ("abc", "ast", "bisect", "calendar", "csv", "enum", "glob", "heapq", "io"):
        body = "\n\n".join(
            f"def {name}_{i}(value, *, limit={i}):\n    if value > limit:\n        return {name!r} + str(value)\n    return None"
            for i in range(12)
        )
        (root / f"{name}.py").write_text(f'"""The module {name}."""\n\n{body}\n')
    for folder in ("test", "skipped", "site-packages"):
        (root / folder).mkdir()
    for name in ("calendar", "csv", "heapq"):
        (root / "test" / f"test_{name}.py").write_text(f"import {name}\n\n\nassert {name}\n" * 30)
    (root / "skipped" / "table.py").write_text("x = 1\n")
    (root / "site-packages" / "other.py").write_text("x = 2\n")
    (root / "test" / "latin.py").write_bytes(b"# caf\xe9\n")
    return root


def toml_text() -> str:
    """TINY as the TOML a user would write; JSON's scalars and lists are TOML's too."""

    def lines(table: dict[str, Any]) -> str:
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())

    text = f"name = {json.dumps(TINY['name'])}\n"
    for key, value in TINY.items():
        if isinstance(value, dict):
            text += f"\n[{key}]\n{lines(value)}"
        elif isinstance(value, list):
            text += "".join(f"\n[[{key}]]\n{lines(row)}" for row in value)
    return text
