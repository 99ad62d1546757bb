"""Shapes: parameter counts against what publishers say, cache bytes, and refusals."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from ridgepoint.catalog.models import catalog_model, catalog_models, model_spec
from ridgepoint.catalog.spec import MoeSpec
from ridgepoint.catalog.tables import spec_from_table
from ridgepoint.cost import kv_bytes_per_token, kv_fixed_bytes_per_seq, shape_of
from ridgepoint.cost.memory import index_key_bytes
from ridgepoint.errors import CatalogError

DATA = Path(os.environ.get("RIDGEPOINT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

# Publishers round to two digits ("12B" for 11.77), and an active count of one digit ("3B") to half a unit in three.
TOTAL_TOLERANCE, ACTIVE_TOLERANCE = 0.021, 0.16
ROUGH_NAMES = {
    "nemotron-3-nano-30b-a3b": 0.055,  # its card says 31.6 billion, its name 30
    "gemma-4-26b-a4b": 0.031,  # 26 with the vision tower, which is no part of the decoder
}


@pytest.mark.parametrize("name", catalog_models())
def test_headline_counts(name: str) -> None:
    model = catalog_model(name)
    shape = shape_of(model.spec)
    if model.headline_total_params:
        tolerance = ROUGH_NAMES.get(name, TOTAL_TOLERANCE)
        assert shape.total_params == pytest.approx(model.headline_total_params, rel=tolerance)
    if model.headline_active_params:
        # Publishers count in "active" the head, the head and the input embedding, or neither: any reading may be meant.
        active = shape.active_params
        readings = (active, active + shape.embedding_params, active - shape.head_params)
        assert any(value == pytest.approx(model.headline_active_params, rel=ACTIVE_TOLERANCE) for value in readings)


# What the gathered table leaves out of a model's cache, or counts otherwise than its configuration says.
WITHOUT_CONVOLUTION = ("kimi", "nemotron-h")  # the last inputs of a recurrent layer's short convolution
WITHOUT_INDEXER = ("minimax-m3",)  # its index branch: neither parameters nor keys


@pytest.mark.skipif(not (DATA / "models.csv").is_file(), reason="no shared tables here")
def test_against_the_gathered_table() -> None:
    with (DATA / "models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 36
    for row in rows:
        spec = model_spec(row["id"])
        kinds = shape_of(spec).kinds
        index_params = sum(k.count * k.indexer_params for k in kinds) if row["id"] in WITHOUT_INDEXER else 0
        index_bytes = sum(k.count * index_key_bytes(k, "bf16") for k in kinds) if row["id"] in WITHOUT_INDEXER else 0.0
        conv = sum(k.count * k.linear.conv_bytes_per_seq for k in kinds if k.linear)
        if row["total_params_b_computed"]:
            close = 0.006 if "approximate" in row["notes"] else 0.003
            total, active = shape_of(spec).total_params, shape_of(spec).active_params
            assert (total - index_params) / 1e9 == pytest.approx(float(row["total_params_b_computed"]), rel=close), row
            assert (active - index_params) / 1e9 == pytest.approx(float(row["active_params_b_computed"]), rel=close), (
                row
            )
        if row["routed_expert_params_b"]:
            routed = shape_of(spec).expert_params / 1e9
            assert routed == pytest.approx(float(row["routed_expert_params_b"]), rel=0.001, abs=0.06), row
        if row["kv_bytes_per_token_bf16"]:
            assert kv_bytes_per_token(spec) - index_bytes == pytest.approx(float(row["kv_bytes_per_token_bf16"])), row
        if row["kv_fixed_bytes_per_seq"]:
            kept = kv_fixed_bytes_per_seq(spec) - (conv if row["family"] in WITHOUT_CONVOLUTION else 0)
            assert kept == pytest.approx(float(row["kv_fixed_bytes_per_seq"])), row


def test_parts_sum_to_the_whole() -> None:
    for model in catalog_models().values():
        shape = shape_of(model.spec)
        assert shape.active_params <= shape.total_params + shape.head_params
        assert sum(kind.count for kind in shape.kinds) == model.spec.num_layers


def test_layer_patterns() -> None:
    scout = model_spec("llama-4-scout")
    assert [layer.window for layer in scout.layers[:4]] == [8192, 8192, 8192, None]
    maverick = model_spec("llama-4-maverick")
    assert [isinstance(layer.ffn, MoeSpec) for layer in maverick.layers[:4]] == [False, True, False, True]
    assert [isinstance(layer.ffn, MoeSpec) for layer in model_spec("deepseek-v3").layers[:5]] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_refusals() -> None:
    with pytest.raises(CatalogError, match="unknown model 'gpt-5'"):
        model_spec("gpt-5")
    row = {
        "family": "x", "d_model": 64, "layers": 1, "vocab": 10, "tied": False, "max_context": 10, "heads": 2, "kv_heads": 1, "head_dim": 8,
        "rope_theta": 1e4, "qk_norm": "none", "output_gate": "none", "activation": "swiglu", "dense_ffn": 16, "source": "here", "date": "now",
    }  # fmt: skip
    assert spec_from_table("x", row).num_layers == 1
    with pytest.raises(CatalogError, match="unknown key 'hidden_size'"):
        spec_from_table("x", {**row, "hidden_size": 3})
    with pytest.raises(CatalogError, match="top_k 9 exceeds the 8 experts"):
        spec_from_table("x", {**row, "experts": 8, "top_k": 9, "expert_ffn": 4, "router": "softmax"})
    with pytest.raises(CatalogError, match="layers must not be negative"):
        spec_from_table("x", {**row, "layers": -1})
